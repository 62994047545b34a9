"""Prune an Ultralytics YOLO, and measure the result on the drone.

    import edgeprune as ep

    pruned = ep.prune("best.pt", ratio=0.2, data="data.yaml")
    tuned = ep.finetune(pruned, "data.yaml", distill="best.pt")
    ep.compare("best.pt", pruned, tuned, data="data.yaml").save_html("report.html")

`__all__` lists the public API. The import loads neither torch nor Ultralytics; the first use of a name does.
"""

import importlib
import os
from typing import TYPE_CHECKING

import edgeprune_device  # noqa: F401  first: it keeps ONNX Runtime's telemetry off

from edgeprune import versions
from edgeprune.model import threads

# Set before torch and Ultralytics are imported, because both read the environment when they load. A variable that the
# user has set stays.
# By default Ultralytics installs missing packages, looks up two servers to learn whether it is online, and may send
# usage figures.
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")
threads.prepare()

__version__ = versions.edgeprune()

if TYPE_CHECKING:
    from edgeprune_device.errors import EdgepruneError, GateError, InputError
    from edgeprune_device.target import Target
    from edgeprune_device.trust.bundle import Bundle
    from edgeprune_device.vision.accuracy import Accuracy

    from edgeprune.analysis.analyze import Analysis
    from edgeprune.api.analyze import analyze
    from edgeprune.api.build import Build, build, embedded_demo
    from edgeprune.api.compare import compare
    from edgeprune.api.export import Exported, export
    from edgeprune.api.finetune import Finetuned, finetune
    from edgeprune.api.prune import Pruned, prune
    from edgeprune.comparison.comparison import Comparison
    from edgeprune.model.count import Cost
    from edgeprune.pruning.plan import PrunePlan

__all__ = [
    "Accuracy",
    "Analysis",
    "Build",
    "Bundle",
    "Comparison",
    "Cost",
    "EdgepruneError",
    "Exported",
    "Finetuned",
    "GateError",
    "InputError",
    "PrunePlan",
    "Pruned",
    "Target",
    "__version__",
    "analyze",
    "build",
    "compare",
    "embedded_demo",
    "export",
    "finetune",
    "prune",
]

_MODULES = {
    "edgeprune_device.vision.accuracy": ("Accuracy",),
    "edgeprune_device.trust.bundle": ("Bundle",),
    "edgeprune_device.errors": ("EdgepruneError", "GateError", "InputError"),
    "edgeprune_device.target": ("Target",),
    "edgeprune.analysis.analyze": ("Analysis",),
    "edgeprune.api.analyze": ("analyze",),
    "edgeprune.api.build": ("Build", "build", "embedded_demo"),
    "edgeprune.api.compare": ("compare",),
    "edgeprune.api.export": ("Exported", "export"),
    "edgeprune.api.finetune": ("Finetuned", "finetune"),
    "edgeprune.api.prune": ("Pruned", "prune"),
    "edgeprune.comparison.comparison": ("Comparison",),
    "edgeprune.model.count": ("Cost",),
    "edgeprune.pruning.plan": ("PrunePlan",),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            globals()[name] = value = getattr(importlib.import_module(module), name)
            return value
    raise AttributeError(f"module 'edgeprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
