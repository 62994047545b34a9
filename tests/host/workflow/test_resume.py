"""resume: which options may change, and which stages then run again."""

import json

import pytest
from edgeprune_device.errors import InputError

from edgeprune.console.progress import Reporter
from edgeprune.workflow import build
from edgeprune.workflow.job import Job
from edgeprune.workflow.resume import begin

from ..builds import request


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"schema_version": 9, "inputs": {}, "stages": []}'])
def test_an_unknown_record_is_refused(inputs, tmp_path, content):
    (tmp_path / "build.json").write_text(content)
    with pytest.raises(InputError, match="not the record of a build"):
        build.run_build(request(inputs), tmp_path, Reporter(quiet=True), resume=True)


def interrupted(inputs, out, done):
    """A record of a build in which these stages are done; they left no files."""
    job = Job(request(inputs), out, Reporter(quiet=True))
    job.record = begin(job, resume=False)
    job.record["stages"] = [{"name": name, "seconds": 1.0, "files": {}} for name in done]
    out.mkdir(exist_ok=True)
    job.write()


def resumed(inputs, out, **changes):
    """The stages that a build with these options keeps."""
    return [stage["name"] for stage in begin(Job(request(inputs, **changes), out, Reporter()), resume=True)["stages"]]


@pytest.mark.parametrize(
    ("done", "changes"),
    [
        ("baseline", {"budget": "macs 0.5"}),
        ("baseline plan prune", {"epochs": 5}),
        ("baseline plan prune", {"max_drop": 0.1, "precision": ("fp32", "fp16"), "nms": True, "name": "other"}),
        ("baseline plan prune finetune export", {"max_drop": 0.1}),
    ],
)
def test_an_option_may_change_until_a_finished_stage_depends_on_it(inputs, tmp_path, done, changes):
    interrupted(inputs, tmp_path, done.split())
    assert resumed(inputs, tmp_path, **changes) == done.split()


@pytest.mark.parametrize(
    ("done", "changes", "name"),
    [
        ("baseline plan", {"budget": "ratio 0.3"}, "ratio"),
        ("baseline plan", {"criterion": "l1"}, "criterion"),
        ("baseline", {"head": "one-to-many"}, "head"),
        ("baseline step 1", {"epochs": 5}, "epochs"),
        ("baseline plan prune finetune", {"lr": 1e-3}, "lr"),
        ("baseline plan prune finetune export quantize", {"max_drop": 0.1}, "max_drop"),
    ],
)
def test_a_changed_option_of_a_finished_stage_is_refused(inputs, tmp_path, done, changes, name):
    interrupted(inputs, tmp_path, done.replace("step 1", "step-1").split())
    if "step 1" in done:
        record = json.loads((tmp_path / "build.json").read_text())
        record["stages"][1]["name"] = "step 1"
        (tmp_path / "build.json").write_text(json.dumps(record))
    remedy = "leave out head" if name == "head" else "restore the original values"
    with pytest.raises(InputError, match=rf"cannot be resumed \(changed since the build started: {name}\); {remedy}"):
        resumed(inputs, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "kept", "message"),
    [
        ({"pictures": 3}, "baseline plan prune finetune export quantize engine pack", "stage page: pictures changed"),
        ({"on": "me@drone"}, "baseline plan prune finetune export quantize engine", "stage pack: on changed"),
        ({"qat": 1}, "baseline plan prune finetune", "stage export: qat changed"),
        ({"qat": 1, "pictures": 3}, "baseline plan prune finetune", "qat changed and pictures changed"),
    ],
)
def test_an_option_that_restarts_its_stage_may_change_at_any_time(inputs, tmp_path, capsys, changes, kept, message):
    interrupted(
        inputs, tmp_path, ["baseline", "plan", "prune", "finetune", "export", "quantize", "engine", "pack", "page"]
    )
    assert resumed(inputs, tmp_path, **changes) == kept.split()
    assert message in capsys.readouterr().err


def test_a_new_option_has_its_default_in_an_older_record(inputs, tmp_path):
    interrupted(inputs, tmp_path, ["baseline", "plan"])
    record = json.loads((tmp_path / "build.json").read_text())
    del record["inputs"]["options"]["portable"]
    (tmp_path / "build.json").write_text(json.dumps(record))
    assert resumed(inputs, tmp_path) == ["baseline", "plan"]
    with pytest.raises(InputError, match=r"\(changed since the build started: portable\)"):
        resumed(inputs, tmp_path, portable=True)


def test_an_older_record_of_two_heads_continues_only_with_the_head_that_it_measured(inputs, tmp_path):
    interrupted(inputs, tmp_path, ["baseline", "plan"])
    record = json.loads((tmp_path / "build.json").read_text())
    del record["inputs"]["options"]["head"]
    record["models"]["original"] = {"head": "one-to-many"}  # the only head of this network
    (tmp_path / "build.json").write_text(json.dumps(record))
    assert resumed(inputs, tmp_path, head="one-to-many") == ["baseline", "plan"]
    expected = r"\(changed since the build started: head\); continue with head=one-to-many, or give another out"
    with pytest.raises(InputError, match=expected):
        resumed(inputs, tmp_path)
