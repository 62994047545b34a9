"""Builds of small networks."""

from edgeprune.measuring.sessions import TorchSession
from edgeprune.options import BuildOptions, complete
from edgeprune.workflow.job import BuildRequest

from .small import dataset, label_by, save, short

#: Options of small and fast builds, with weights that detect nothing.
QUICK = {"target": "jetson-orin", "epochs": 2, "max_drop": 1.0, "allow_poor_baseline": True}


def request(folder, imgsz=96, name="small", budget="ratio 0.2", weights=None, data=None, **changes):
    """The request for a build of the network and the data in a folder."""
    kind, value = budget.split()
    options = complete(BuildOptions, {**QUICK, kind: float(value), **changes})
    weights, data = weights or folder / "best.pt", data or folder / "data" / "data.yaml"
    return BuildRequest(options, weights, data, imgsz, name)


RUN = """
import json
import sys
from pathlib import Path
from edgeprune.console.progress import Reporter
from edgeprune.options import BuildOptions, complete
from edgeprune.workflow.build import run_build
from edgeprune.workflow.job import BuildRequest
given = json.loads(sys.argv[1])
kind, value = given.pop("budget").split()
weights, data, imgsz, name = (given.pop(key) for key in ("weights", "data", "imgsz", "name"))
options = complete(BuildOptions, {kind: float(value), **given})
request = BuildRequest(options, Path(weights), Path(data), imgsz, name)
record = run_build(request, Path(sys.argv[2]), Reporter(), resume=True)
"""


def fitted_inputs(inputs, folder, size=96):
    """A model that detects objects on its images, whose labels are its own best detections."""
    dataset(folder / "data", train=16, val=4, seed=1, size=size)
    model = short()
    save(model, folder / "best.pt")
    label_by(TorchSession(model, size), folder / "data", size)
    return folder
