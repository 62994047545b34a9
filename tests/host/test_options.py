"""options: one declaration defines parsers, signatures, docstrings, records and `--resume`."""

import inspect
from typing import get_type_hints

import pytest
from edgeprune_device.cli import Parser
from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess

import edgeprune as ep
from edgeprune import options
from edgeprune.commands import analyze, build, compare, export, finetune, prune

VERBS = {
    "build": (build, options.BuildOptions),
    "prune": (prune, options.PruneOptions),
    "finetune": (finetune, options.FinetuneOptions),
    "export": (export, options.ExportOptions),
    "analyze": (analyze, options.AnalyzeOptions),
    "compare": (compare, options.CompareOptions),
}
DECLARATIONS = [item for item in vars(options).values() if getattr(item, "__total__", None) is not None]


@pytest.mark.parametrize("verb", VERBS)
def test_the_signature_of_a_verb_has_the_options_of_its_command(verb):
    command, declaration = VERBS[verb]
    parser = Parser(prog=verb)
    command.configure(parser)
    actions = {action.dest: action for action in parser._actions}
    parameters, hints = inspect.signature(getattr(ep, verb)).parameters, get_type_hints(declaration)
    for name, option in options.declared(declaration).items():
        parameter = parameters[name]
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.annotation == hints[name]
        assert parameter.default == (inspect.Parameter.empty if option.required else option.default)
        if name in actions:  # a command may declare its own `out`
            assert actions[name].required == option.required
            assert actions[name].default in (option.default, None)
        assert f"        {name}: {option.help[:20]}" in getattr(ep, verb).__doc__
    assert "see `" not in getattr(ep, verb).__doc__.split("Returns:")[0].split(f"        {next(iter(hints))}:")[0]


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=lambda item: item.__name__)
def test_a_declaration_is_complete(declaration):
    for name, option in options.declared(declaration).items():
        assert option.name == name and option.help and not option.help.endswith(".")
        assert option.stage is None or option.stage in options.STAGES
        assert option.stage or not option.restarts
        assert option.default is None or option.check(option.default) == option.default


def test_an_option_of_a_build_without_a_stage_changes_no_result():
    """A new option that a stage depends on must declare the stage, or a resumed build would ignore it."""
    free = {name for name, option in options.declared(options.BuildOptions).items() if option.stage is None}
    assert free == {"max_megapixels", "out", "quiet", "resume", "strict"}


def test_the_stages_equal_those_of_the_pipeline():
    from edgeprune.workflow import stages

    everything = options.complete(options.BuildOptions, {"target": "x", "qat": 1, "on": "me@drone"})
    assert tuple(name for name, _ in stages.pipeline(everything)) == options.STAGES


def test_a_verb_refuses_unknown_arguments():
    with pytest.raises(TypeError, match=r"prune\(\): .*nonsense"):
        ep.prune("best.pt", nonsense=1)
    with pytest.raises(TypeError, match=r"build\(\): missing a required argument: 'target'"):
        ep.build(ratio=0.2)


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("build", {"target": "cpu", "ratio": 0.2, "max_drop": float("nan")}, "^max_drop: invalid value"),
        (
            "build",
            {"target": "cpu", "ratio": 1.0},
            r"^ratio: .*found '1', expected a number in \[0, 1\)\)",
        ),
        ("build", {"target": "cpu", "ratio": 0.2, "epochs": 0}, "^epochs: invalid value"),
        ("build", {"target": "cpu", "ratio": 0.2, "precision": "fp23"}, "did you mean fp32"),
    ],
)
def test_an_error_in_python_names_the_parameter(verb, arguments, message):
    with pytest.raises(InputError, match=message):
        getattr(ep, verb)(**arguments)


def test_export_refuses_nan_as_a_limit():
    """With nan every drop would pass."""
    with pytest.raises(InputError, match=r"^max_drop: invalid value"):
        ep.export("best.pt", "data.yaml", max_drop=float("nan"))


@pytest.mark.parametrize("verb", VERBS)
def test_the_size_limit_of_a_verb_applies_to_its_images(verb):
    assert "max_megapixels" in options.declared(VERBS[verb][1])

    @options.takes(options.PruneOptions)
    def decodes(**options):
        with pytest.raises(InputError, match="expected at most 1 megapixels"):
            preprocess.check_size(2000, 1000, "a.png")

    decodes(max_megapixels=1)
    preprocess.check_size(2000, 1000, "a.png")
