"""The table of tasks. A new task is a file beside this one, and an entry here and in `schema/manifest.json`."""

from __future__ import annotations

from edgeprune_device.errors import InputError
from edgeprune_device.vision import detect, obb
from edgeprune_device.vision.task import Task

__all__ = ["TASKS", "Task", "get"]

#: {name: task}.
TASKS = {task.name: task for task in (detect.TASK, obb.TASK)}


def get(name: str) -> Task:
    """The task of this name.

    Raises:
        InputError: There is none.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise InputError(f"task: unknown (found {name!r}, expected {' or '.join(TASKS)})") from None
