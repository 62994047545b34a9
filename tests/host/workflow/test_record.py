"""record: the command that a page gives asks for the same build."""

import argparse
import shlex
from pathlib import Path

import pytest

from edgeprune import demo
from edgeprune.commands import build as command
from edgeprune.commands import options as arguments
from edgeprune.pruning.budget import Budget
from edgeprune.workflow import record

from ..builds import options


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budget": Budget("latency", 0.75), "criterion": "l1", "lr": 3e-5, "uniform": True, "qat": 2, "patience": 4},
        {"precision": ("fp32", "fp16"), "max_drop": 0.01, "nms": True, "steps": 2, "pictures": 0, "on": "me@jetson"},
        {"weights": demo.WEIGHTS, "data": Path("/elsewhere/demo-20-20/data.yaml")},
    ],
)
def test_the_command_that_the_page_gives_asks_for_the_same(inputs, changes):
    """Through the real parser."""
    asked = options(inputs, **changes)
    words = shlex.split(record.command(asked.to_json()))
    assert words[:2] == ["edgeprune", "build"]
    parser = argparse.ArgumentParser()
    command.configure(parser)
    given = parser.parse_args(words[2:])
    assert arguments.asked(given) == asked.budget
    same = ("criterion", "lr", "uniform", "patience", "max_drop", "nms", "steps", "pictures", "on", "epochs", "imgsz",
            "allow_poor_baseline")
    for name in same:
        assert getattr(given, name) == getattr(asked, name), name
    assert (given.weights, given.data, given.target) == (asked.weights, asked.data, asked.target)
    assert arguments.splitted(given.precision) == asked.precision and arguments.qat_epochs(given) == asked.qat
