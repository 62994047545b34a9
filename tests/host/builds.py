"""Builds of small networks."""

from edgeprune.measuring.sessions import TorchSession
from edgeprune.pruning.budget import Budget
from edgeprune.workflow.job import BuildOptions

from .small import dataset, label_by, save, short


def options(folder, **changes):
    given = {
        "weights": folder / "best.pt", "data": folder / "data" / "data.yaml", "target": "jetson-orin",
        "budget": Budget("ratio", 0.2), "uniform": False, "portable": False, "steps": 1,
        "distill": False, "patience": 0,
        "criterion": "auto", "imgsz": 96, "epochs": 2, "batch": 4, "lr": 1e-4, "device": "cpu", "workers": 0, "seed": 0,
        "precision": ("fp32", "fp16", "int8"), "max_drop": 1.0, "nms": False, "name": "small",
        "allow_poor_baseline": True,  # random weights find nothing
    }  # fmt: skip
    return BuildOptions(**{**given, **changes})



RUN = """
import json
import sys
from pathlib import Path
from edgeprune.workflow.build import run_build
from edgeprune.console.progress import Reporter
from edgeprune.pruning.budget import Budget
from edgeprune.workflow.job import BuildOptions
given = json.loads(sys.argv[1])
kind, value = given["budget"].split()
given.update(weights=Path(given["weights"]), data=Path(given["data"]), precision=tuple(given["precision"]),
             budget=Budget(kind, float(value)))
record = run_build(BuildOptions(**given), Path(sys.argv[2]), Reporter(), resume=True)
"""



def fitted_inputs(inputs, folder):
    """A model that finds something on its pictures: labels made of its own best detections."""
    dataset(folder / "data", train=16, val=4, seed=1)
    model = short()
    save(model, folder / "best.pt")
    label_by(TorchSession(model, 96), folder / "data", 96)
    return folder
