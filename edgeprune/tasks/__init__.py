"""The host's part of each task: its labels, its targets for training, and the class of its network.

One file a task. Code outside asks the task and never its name.
"""

from __future__ import annotations

from edgeprune_device.errors import InputError

from edgeprune.tasks import detect, obb
from edgeprune.tasks.task import Task

__all__ = ["DETECT", "NETWORKS", "TASKS", "Task", "get"]

DETECT = detect.TASK
#: {name: task}, with the tasks that every command supports.
TASKS: dict[str, Task] = {task.name: task for task in (DETECT, obb.TASK)}
#: Ultralytics' class of a network -> its task. `prune` without --data takes all of them but the last two. Other classes
#: (RT-DETR, YOLO-World, YOLOE) are refused by name.
NETWORKS = {
    **{task.network: name for name, task in TASKS.items()},
    "SegmentationModel": "segment",
    "PoseModel": "pose",
    "ClassificationModel": "classify",
    "SemanticSegmentationModel": "semantic",
    "DepthModel": "depth",
}


def get(name: str, what: str = "task") -> Task:
    """The task of this name.

    Args:
        name: Its name.
        what: Begins the error's message.

    Raises:
        InputError: There is none, or not every command supports it.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise InputError(f"{what}: not supported (found {name!r}, expected {' or '.join(TASKS)})") from None
