"""The options that several commands of the device and the host share; each is declared once, here."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from edgeprune_device import plugins
from edgeprune_device.option import Choice, File, Flag, Number, Option, Text, Whole

#: The precisions of a bundle's models, simplest first.
PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16")
#: The folder in which releases are installed.
ROOT = Path("/opt/edgeprune")


def _modules(folder: str) -> Sequence[str]:
    return [name.replace("_", "-") for name in plugins.names([str(Path(__file__).parent / folder)])]


def _or_auto(folder: str) -> Sequence[str]:
    return ["auto", *_modules(folder)]


MAX_DROP = Option("max_drop", Number(0, 1), "largest accuracy drop, absolute mAP50-95", metavar="X")
INSTALL_MAX_DROP = MAX_DROP.but(
    help="largest accuracy drop against the host's figure on the same images, absolute mAP50-95", default=0.01
)
PRECISION = Option(
    "precision", Choice(("auto", *PRECISIONS)), "model of the bundle: {names}; auto: the best for the "
    "runtime", default="auto", metavar="NAME",
)  # fmt: skip
RUNTIME = Option(
    "runtime", Choice(lambda: _or_auto("runtimes")), "inference runtime: {names}; auto: the best, or on a "
    "CPU the fastest in a short measurement; null: no model, to measure the benchmark itself",
    default="auto", metavar="NAME",
)  # fmt: skip
CUDA = Option(
    "cuda", Choice(lambda: _or_auto("cuda")), "Python binding for CUDA: {names}; auto: the first that "
    "works", default="auto", metavar="NAME",
)  # fmt: skip
WORKSPACE = Option(
    "workspace", Whole(1, 10**6), "maximum workspace per layer during a TensorRT engine build, MB (default: from the "
    "free memory)", metavar="MB",
)  # fmt: skip
THREADS = Option("threads", Whole(1), "CPU threads for inference (default: the runtime's choice)", metavar="N")
CONF = Option("conf", Number(0, 1, "()"), "score threshold of detections (default: the bundle's)", metavar="X")
SOURCE = Option(
    "source", Text(), "source of the frames: bundle (the bundle's evaluation images), a folder or image, a video, "
    "/dev/video0, csi, or a GStreamer pipeline", default="bundle",
)  # fmt: skip
OUTPUT = Option(
    "output", Text(), "destination of the detections: - (standard output), a file (appended to), or unix:PATH (a "
    "socket)", default="-",
)  # fmt: skip
RELEASES = Option("root", File(), "folder of the releases", default=ROOT, metavar="FOLDER")
KEEP = Option("keep", Whole(2), "number of releases to keep, including the new one", default=3, metavar="N")
HEALTH = Option(
    "health", Number(0, ends="(]"), "time that the release must stay healthy to be accepted, s", default=30.0,
    metavar="S",
)  # fmt: skip
LIMIT = Option(
    "limit", Number(0, ends="(]"), "time limit for each of these steps, s: model load; first inference and latency "
    "measurement; accuracy measurement. An engine build has a separate limit", default=1800.0, metavar="S",
)  # fmt: skip
SERVICE_LIMIT = LIMIT.but(
    help="time limit for each of these steps, s: model load; first inference. An engine build has a "
    "separate limit", default=600.0,
)  # fmt: skip
UNIT = Option("unit", Text(), "the systemd unit to restart (default: the unit of edgeprune run)", metavar="NAME")
MAX_MEGAPIXELS = Option(
    "max_megapixels", Whole(1, 178), "largest image to decode, megapixels; larger ones are refused before they use "
    "memory", default=50, metavar="N",
)  # fmt: skip
ALLOW_UNTRUSTED = Option("allow_untrusted", Flag(), "accept an intact bundle whose key is not trusted", default=False)
ALLOW_OLDER = Option(
    "allow_older",
    Flag(),
    "accept a bundle that is older than the newest confirmed release of the same key",
    default=False,
)
JSON = Option("json", Flag(), "print JSON", default=False)
