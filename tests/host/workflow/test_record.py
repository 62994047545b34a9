"""record: the command on a page requests the same build."""

import argparse
import shlex
from pathlib import Path

import pytest

from edgeprune import demo
from edgeprune.commands import build as command
from edgeprune.options import BuildOptions, complete
from edgeprune.workflow import record
from edgeprune.workflow.job import BuildRequest

from ..builds import request


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budget": "latency_ratio 0.75", "criterion": "l1", "lr": 3e-5, "uniform": True, "qat": 2, "patience": 4},
        {"precision": ("fp32", "fp16"), "max_drop": 0.01, "nms": True, "steps": 2, "pictures": 0, "on": "me@jetson"},
        {"weights": demo.WEIGHTS, "data": Path("/elsewhere/demo-20-20/data.yaml")},
    ],
)
def test_the_command_on_the_page_requests_the_same_build(inputs, changes):
    """The real parser reads the command."""
    asked = request(inputs, **changes)
    words = shlex.split(record.command(asked.to_json()))
    assert words[:2] == ["edgeprune", "build"]
    parser = argparse.ArgumentParser()
    command.configure(parser)
    given = parser.parse_args(words[2:])
    values = complete(BuildOptions, vars(given))
    again = BuildRequest(values, given.weights, given.data, given.imgsz, asked.name)
    assert again.to_json() == asked.to_json()


def test_the_comparison_on_the_page_measures_the_same_head_and_images(inputs):
    options = request(inputs, imgsz=(64, 96), head="one-to-one", val_images=3).to_json()
    _, compare = record._reproduce(options, {"pack": {"bundle": "small.epb"}}, Path("out"))
    assert shlex.split(compare)[-6:] == ["--imgsz", "64,96", "--head", "one-to-one", "--val-images", "3"]
