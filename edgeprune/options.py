"""The options of the host's commands and of the Python API: each is declared once, here.

A command's options are a TypedDict. The annotation of a field is the option: its type, range, default and help, and the
first stage of a build that depends on it. Parsers, signatures and docstrings of the API, the record of a build,
`--resume` and docs/commands.md are made from these declarations. A new option is one field here, and its use:

    epochs: Annotated[int, Declared(Whole(1), "fine-tuning epochs", default=10, metavar="N", stage="finetune")]
"""

import functools
import inspect
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

from edgeprune_device import options as device
from edgeprune_device import plugins
from edgeprune_device.errors import InputError
from edgeprune_device.option import Choice, File, Flag, Names, Number, Option, Text, Whole, named
from edgeprune_device.size import InputSize, SizeLike
from typing_extensions import Required, TypedDict, get_type_hints

#: The stages of a build, in order. `step 1`, `step 2`, … (with steps=N) come before `plan` and do what the three stages
#: from `plan` on do.
STAGES = (
    "baseline", "plan", "prune", "finetune", "qat", "export", "quantize", "engine", "reference", "pack", "page",
)  # fmt: skip
#: The precisions that a user can request; `int8` also makes int8-fp16 if the target runs it.
PRECISIONS = ("fp32", "fp16", "int8")
#: The heads of a network with two, as values of `--head`.
HEADS = ("one-to-one", "one-to-many")
#: The inputs of the packed models, as values of `--input`.
INPUTS = ("auto", "uint8", "float32")
#: A file argument of the API.
Pathlike = str | Path

Declared = functools.partial(Option, "")  # the field's name is the option's

_FORMS = "data.yaml, its folder, COCO's JSON or its folder, a .zip, or an Ultralytics name (coco8)"


def _tasks() -> list[str]:
    from edgeprune_device.vision import tasks  # late: it needs numpy

    return list(tasks.TASKS)


def _criteria() -> list[str]:
    return plugins.names([str(Path(__file__).parent / "pruning" / "criteria")])


class QuietOption(TypedDict, total=False):
    """The option of every verb."""

    quiet: Annotated[bool, Declared(Flag(), "print warnings and results only, no progress", default=False)]


class LimitOption(TypedDict, total=False):
    """The size limit of images to decode."""

    max_megapixels: Annotated[int, device.MAX_MEGAPIXELS]


class StrictOption(TypedDict, total=False):
    """The treatment of unusable images."""

    strict: Annotated[
        bool,
        Declared(
            Flag(),
            "fail if the data set has unusable images: damaged, too small, or of a format that Ultralytics does not "
            "train on (default: all steps skip these images, and a warning names them)",
            default=False,
        ),
    ]  # fmt: skip


class SizeOption(TypedDict, total=False):
    """The size of the network's input."""

    imgsz: Annotated[
        SizeLike | None,
        Declared(
            InputSize(),
            "size of the network's input, px: N is a square, HEIGHT,WIDTH a rectangle, auto:N a rectangle in the shape "
            "of the images with N as its longer side (default: the training size of the weights)",
            metavar="SIZE", stage="baseline",
        ),
    ]  # fmt: skip


class HeadOption(TypedDict, total=False):
    """The head of a network with two."""

    head: Annotated[
        str | None,
        Declared(
            Choice(HEADS),
            "for a network with two heads (YOLOv10, YOLO26), the head that is exported and measured: {names}; "
            "one-to-one needs no NMS (default: the checkpoint's own choice; stock weights use one-to-many, as "
            "Ultralytics does)",
            metavar="HEAD", stage="baseline",
        ),
    ]  # fmt: skip


class ValidationOption(TypedDict, total=False):
    """The validation images."""

    val_images: Annotated[
        int | None,
        Declared(
            Whole(1),
            "measure accuracy on N validation images, evenly spread over the data set; build and compare then state "
            "the 95 % bootstrap interval of each mAP (default: all images)",
            metavar="N", stage="baseline",
        ),
    ]  # fmt: skip


class TargetOption(TypedDict, total=False):
    """The target device."""

    target: Annotated[
        str,
        Declared(Text(), "target device (`edgeprune targets` lists them), or a JSON file of your own",
                 default="jetson-orin", metavar="NAME", stage="plan"),
    ]  # fmt: skip


class BudgetOptions(TypedDict, total=False):
    """The budget: exactly one of these options."""

    ratio: Annotated[
        float | None,
        Declared(Number(0, 1, "[)"), "fraction of the prunable channels to remove", metavar="R", stage="plan"),
    ]
    macs: Annotated[
        float | None,
        Declared(Number(0, 1, "(]"), "fraction of the multiply-accumulates to keep", metavar="F", stage="plan"),
    ]
    params: Annotated[
        float | None,
        Declared(Number(0, 1, "(]"), "fraction of the parameters to keep", metavar="F", stage="plan"),
    ]
    latency_ratio: Annotated[
        float | None,
        Declared(Number(0, 1, "(]"), "fraction of the inference latency to keep, measured on this machine", metavar="F",
                 stage="plan"),
    ]  # fmt: skip
    latency_ms: Annotated[
        float | None,
        Declared(Number(0, ends="(]"), "maximum inference latency per image, ms, measured on this machine",
                 metavar="MS", stage="plan"),
    ]  # fmt: skip


class PruningOptions(TypedDict, total=False):
    """The choice of channels, besides the budget."""

    uniform: Annotated[
        bool,
        Declared(Flag(), "remove the same share of every group (default: remove more where that costs less accuracy)",
                 default=False, stage="plan"),
    ]  # fmt: skip
    portable: Annotated[
        bool,
        Declared(Flag(), "keep only widths that Ultralytics' YAML can express, so that stock train() keeps them",
                 default=False, stage="plan"),
    ]  # fmt: skip
    criterion: Annotated[
        str,
        Declared(
            Text(),
            "channel importance criterion: {names}, module:function, or auto; auto: energy if there are "
            "images, else bn_scale",
            default="auto", metavar="NAME", words=_criteria, stage="plan",
        ),
    ]  # fmt: skip


class DeviceOption(TypedDict, total=False):
    """The device that PyTorch computes on."""

    device: Annotated[
        str,
        Declared(
            Text(),
            "PyTorch device: auto (the GPU with the most free memory, else the CPU), cpu, a GPU's number, or several "
            "for training, such as 0,1 (not verified on real GPUs)",
            default="auto", metavar="DEVICE", stage="finetune",
        ),
    ]  # fmt: skip


class TrainingOptions(DeviceOption, total=False):
    """Fine-tuning."""

    epochs: Annotated[int, Declared(Whole(1), "fine-tuning epochs", default=10, metavar="N", stage="finetune")]
    batch: Annotated[
        int | None,
        Declared(
            Whole(1),
            "images per training step; halved if memory runs out (default: 4 on the CPU; 4 to 32 for each GPU, for "
            "about a hundred steps per epoch)",
            metavar="N", stage="finetune",
        ),
    ]  # fmt: skip
    lr: Annotated[
        float,
        Declared(Number(0, 1, "()"), "learning rate: AdamW, 100 steps of warm-up, cosine to 1 %", default=1e-4,
                 metavar="X", stage="finetune"),
    ]  # fmt: skip
    workers: Annotated[
        int | None,
        Declared(
            Whole(0),
            "data loading processes; 0: the training process loads the images and needs no shared memory (default: 0 "
            "on the CPU, up to 8 for each GPU)",
            metavar="N", stage="finetune",
        ),
    ]  # fmt: skip
    seed: Annotated[
        int,
        Declared(Whole(0), "seed of the training's random numbers", default=0, metavar="N", stage="finetune"),
    ]
    patience: Annotated[
        int,
        Declared(
            Whole(0),
            "hold out a tenth of the training images (8 to 64), stop after N epochs without a better mAP on them, and "
            "keep the best epoch; 0: train all epochs on all images",
            default=0, metavar="N", stage="finetune",
        ),
    ]  # fmt: skip


class PrecisionOptions(TypedDict, total=False):
    """The files of an export."""

    precision: Annotated[
        Sequence[str],
        Declared(Names(PRECISIONS), f"precisions to export: {', '.join(PRECISIONS)}", default=PRECISIONS,
                 metavar="LIST", stage="quantize"),
    ]  # fmt: skip
    max_drop: Annotated[
        float,
        device.MAX_DROP.but(help="largest accuracy drop of a precision against FP32, absolute mAP50-95; a larger "
                            "drop fails",
                            default=0.003, stage="quantize"),
    ]  # fmt: skip
    input: Annotated[
        str,
        Declared(
            Choice(INPUTS),
            "input of the model in the bundle. uint8: the device variant, which takes pixels and returns the best "
            "anchors first; float32: the stock file, for programs that prepare floats themselves, such as DeepStream; "
            "auto: uint8 for GPUs, float32 for CPUs",
            default="auto", stage="quantize",
        ),
    ]  # fmt: skip
    nms: Annotated[
        bool,
        Declared(
            Flag(),
            "add NMS to the ONNX files, whose output is then (1, 300, 6) rows of box, score, class. Only one class per "
            "box remains, so mAP is lower. Not for a one-to-one head, which needs no NMS",
            default=False, stage="export",
        ),
    ]  # fmt: skip


class GalleryOption(TypedDict, total=False):
    """The images of the HTML report."""

    pictures: Annotated[
        int,
        Declared(Whole(0), "images in the gallery of the HTML report, those with the most lost objects first; 0: none",
                 default=12, metavar="N", stage="page", restarts=True),
    ]  # fmt: skip


class BuildInputs(TypedDict, total=False):
    """The target, the network and the images of a build."""

    target: Annotated[
        Required[str],
        Declared(Text(), "target device (`edgeprune targets` lists them), or a JSON file of your own", metavar="NAME",
                 required=True, stage="plan"),
    ]  # fmt: skip
    weights: Annotated[
        Pathlike | None,
        Declared(File(), "your trained .pt (default: ./best.pt with ./data.yaml, else the built-in demo)",
                 metavar="FILE", stage="baseline"),
    ]  # fmt: skip
    data: Annotated[Pathlike | None, Declared(File(), f"the data set: {_FORMS}", metavar="FILE", stage="baseline")]
    task: Annotated[
        str | None,
        Declared(Text(), "task of the network: {names}; must match the task of the weights; without --weights, "
                         "selects the built-in demo (default: the task of the weights, else detect)",
                 metavar="TASK", stage="baseline", words=_tasks),
    ]  # fmt: skip


class BuildOwn(TypedDict, total=False):
    """The options that only a build has."""

    steps: Annotated[
        int,
        Declared(Whole(1), "rounds of pruning and fine-tuning; --epochs is divided among the rounds", default=1,
                 metavar="N", stage="plan"),
    ]  # fmt: skip
    distill: Annotated[
        bool,
        Declared(
            Flag(),
            "distillation during fine-tuning; the teacher is the unpruned network",
            default=False,
            stage="finetune",
        ),
    ]
    qat: Annotated[
        int,
        Declared(
            Whole(0),
            "epochs of quantization-aware training (QAT) after fine-tuning, at a tenth of the learning rate, with "
            "weights and activations rounded as the INT8 file rounds them; without a number: 2; 0: none. Signed INT8 "
            "only, so not for target cpu",
            default=0, bare=2, metavar="N", stage="qat", restarts=True,
        ),
    ]  # fmt: skip
    on: Annotated[
        str | None,
        Declared(Text(), "reference device (address in the form of ssh) that builds and measures the TensorRT engines "
                 "(see docs/deploying.md)", metavar="user@jetson", stage="reference", restarts=True),
    ]  # fmt: skip
    allow_poor_baseline: Annotated[
        bool,
        Declared(Flag(), "build even if the original's mAP50-95 is below 0.01 (default: stop, because the data, the "
                 "classes or the size are probably wrong)", default=False, stage="baseline"),
    ]  # fmt: skip
    name: Annotated[
        str | None,
        Declared(Text(), "name of the bundle (default: from the weights, the target and the budget)", metavar="NAME",
                 stage="pack"),
    ]  # fmt: skip
    out: Annotated[
        Pathlike | None, Declared(File(), "folder of the build (default: a free folder runs/<name>)", metavar="FOLDER")
    ]
    resume: Annotated[bool, Declared(Flag(), "continue an interrupted build of the same inputs", default=False)]


class BuildOptions(
    BuildInputs,
    BudgetOptions,
    PruningOptions,
    HeadOption,
    SizeOption,
    ValidationOption,
    TrainingOptions,
    PrecisionOptions,
    BuildOwn,
    GalleryOption,
    LimitOption,
    StrictOption,
    QuietOption,
    total=False,
):
    """The options of `build`."""


class PruneOptions(
    BudgetOptions,
    PruningOptions,
    HeadOption,
    SizeOption,
    TargetOption,
    DeviceOption,
    LimitOption,
    StrictOption,
    QuietOption,
    total=False,
):
    """The options of `prune`."""

    data: Annotated[
        Pathlike | None,
        Declared(
            File(),
            f"data set whose training images rank the channels and fit the compensation: {_FORMS} (default: rank by "
            "batch-norm scales, without compensation)",
            metavar="FILE",
        ),
    ]  # fmt: skip


class FinetuneOptions(
    TrainingOptions, SizeOption, ValidationOption, LimitOption, StrictOption, QuietOption, total=False
):
    """The options of `finetune`, besides `distill`."""

    sparsity: Annotated[
        float,
        Declared(
            Number(0, 1),
            "Network Slimming, before pruning: each step moves every prunable batch-norm scale towards zero by X times "
            "the schedule's fraction of the learning rate; at most the learning rate; 0: off",
            default=0.0, metavar="X",
        ),
    ]  # fmt: skip
    qat: Annotated[
        int,
        Declared(
            Whole(0),
            "instead of fine-tuning, N epochs of quantization-aware training (QAT) at a tenth of the learning rate, "
            "with weights and activations rounded as the signed INT8 file rounds them; without a number: 2; 0: off. "
            "`edgeprune export` then writes the INT8 file with the same scales",
            default=0, bare=2, metavar="N",
        ),
    ]  # fmt: skip
    out: Annotated[
        Pathlike | None,
        Declared(File((".pt",)), "file of the tuned checkpoint; an interrupted run with the same settings continues",
                 metavar="FILE"),
    ]  # fmt: skip


class ExportOptions(
    PrecisionOptions,
    HeadOption,
    SizeOption,
    ValidationOption,
    TargetOption,
    LimitOption,
    StrictOption,
    QuietOption,
    total=False,
):
    """The options of `export`."""

    out: Annotated[
        Pathlike | None,
        Declared(File(), "folder of the files (default: <weights>-onnx beside the weights)", metavar="FOLDER"),
    ]


class AnalyzeOptions(
    HeadOption, SizeOption, TargetOption, DeviceOption, LimitOption, StrictOption, QuietOption, total=False
):
    """The options of `analyze`."""

    kind: Annotated[
        str,
        Declared(
            Choice(("macs", "params", "ratio")), "cost that the budgets limit: {names}", default="macs", metavar="KIND"
        ),
    ]
    criterion: Annotated[
        str,
        Declared(Text(), "channel importance criterion: {names}, or module:function; not auto", default="energy",
                 metavar="NAME", words=_criteria),
    ]  # fmt: skip


class CompareOptions(
    HeadOption,
    SizeOption,
    ValidationOption,
    DeviceOption,
    GalleryOption,
    LimitOption,
    StrictOption,
    QuietOption,
    total=False,
):
    """The options of `compare`."""

    data: Annotated[
        Pathlike | None,
        Declared(File(), f"data set whose validation images are used to measure mAP: {_FORMS} (default: cost and "
                 "latency only)", metavar="FILE"),
    ]  # fmt: skip
    threads: Annotated[int, Declared(Whole(1), "CPU threads of the latency measurement", default=1, metavar="N")]
    rounds: Annotated[
        int,
        Declared(
            Whole(1), "rounds of the latency measurement; each round runs every model once", default=40, metavar="N"
        ),
    ]


# -- options of the command line only: in Python they are positional arguments or methods of a result ------------------
WEIGHTS = Option("weights", File(), "an Ultralytics checkpoint (.pt)", metavar="FILE", required=True)
DATA = Option("data", File(), f"the data set: {_FORMS}", metavar="FILE")
TEACHER = Option(
    "distill", File((".pt",)), "teacher for distillation: the checkpoint of the unpruned network", metavar="FILE"
)
PRUNED = Option(
    "out", File((".pt",)), "the pruned checkpoint; the plan goes beside it as .json (default: <weights>-pruned.pt "
    "beside the weights)", metavar="FILE",
)  # fmt: skip
ANALYSIS_JSON = Option("json", File((".json",)), "also write the analysis as JSON", metavar="FILE")
PLOT = Option("plot", File((".png",)), "also draw the analysis as an image", metavar="FILE.png")
HTML = Option(
    "html", File((".html", ".htm")), "also write the comparison as one self-contained HTML report", metavar="FILE"
)
# The ending is checked because `--json best.pt` would overwrite the weights.
COMPARISON_JSON = Option("json", File((".json",)), "also write the comparison as JSON", metavar="FILE")


# -- made from the declarations ----------------------------------------------------------------------------------------
def declared(options: type) -> dict[str, Option]:
    """The options of a TypedDict, by name."""
    hints = get_type_hints(options, include_extras=True)
    return {name: replace(hint.__metadata__[0], name=name) for name, hint in hints.items()}


def add(parser: ArgumentParser, options: type, *, without: Sequence[str] = (), **texts: str) -> None:
    """Add the options of a TypedDict to a parser; the budget is a group of which exactly one must be given.

    Args:
        parser: the parser.
        options: the TypedDict.
        without: names of options that the command declares itself.
        texts: text to append to an option's help on the command line, by the option's name.
    """
    exclusive = declared(BudgetOptions)
    group = None
    for name, option in declared(options).items():
        if name in without:
            continue
        if name in exclusive:
            group = group or parser.add_mutually_exclusive_group(required=True)
        option.but(help=option.help + texts.get(name, "")).add(group if name in exclusive else parser)


def given(arguments: Namespace, options: type) -> dict[str, Any]:
    """The values of a TypedDict's options among parsed arguments."""
    return {name: getattr(arguments, name) for name in declared(options) if hasattr(arguments, name)}


def limited(values: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Apply the size limit for images among the values of a verb's options while a block runs."""
    from edgeprune_device.vision import preprocess  # late, because help does not need it

    return preprocess.limited(values["max_megapixels"]) if "max_megapixels" in values else nullcontext()


def budget(values: Mapping[str, Any]) -> dict[str, float | None]:
    """The options of the budget among the values of a verb's options."""
    return {name: values[name] for name in declared(BudgetOptions)}


def complete(options: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values checked against their declarations, with the default of each option that is not given.

    Raises:
        InputError: a value is of another type or outside its range, or a required one is missing.
    """
    checked = {}
    for name, option in declared(options).items():
        if option.required and values.get(name) is None:
            raise InputError(f"{named(name)}: missing (expected {option.help})")
        checked[name] = option.check(values.get(name, option.default))
    return checked


_P = ParamSpec("_P")
_R = TypeVar("_R")


def takes(options: type) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Give a verb of the API the options of a TypedDict as keyword arguments.

    The verb receives every option, checked. Its signature and its docstring name each option, with type and default.

    Args:
        options: the TypedDict that the verb's `**options` unpacks.
    """

    def decorate(verb: Callable[_P, _R]) -> Callable[_P, _R]:
        known = declared(options)

        @functools.wraps(verb)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{verb.__name__}(): {error}") from None
            others = {name: value for name, value in kwargs.items() if name not in known}
            values = complete(options, kwargs)
            with limited(values):
                return verb(*args, **others, **values)  # type: ignore[arg-type]  # made from kwargs

        signature = _signature(verb, options)
        checked.__signature__ = signature  # type: ignore[attr-defined]  # what inspect.signature reads
        described = "".join(f"        {name}: {option.text}.\n" for name, option in known.items())
        checked.__doc__ = (verb.__doc__ or "").replace(f"        options: see `{options.__name__}`.\n", described)
        return checked

    return decorate


def _signature(verb: Callable[..., Any], options: type) -> inspect.Signature:
    """The signature of a verb with its `**options` replaced by one keyword argument for each option."""
    before = inspect.signature(verb)
    own = [p for p in before.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = get_type_hints(options)
    keywords = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[name],
            default=inspect.Parameter.empty if option.required else option.default,
        )
        for name, option in declared(options).items()
    ]  # fmt: skip
    return before.replace(parameters=[*own, *sorted(keywords, key=lambda p: p.default is not inspect.Parameter.empty)])
