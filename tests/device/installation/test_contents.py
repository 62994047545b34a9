"""The files of a release that other programs read: checked by `releases`, `install` and `doctor`, and repaired."""

import os
import subprocess

import pytest
from edgeprune_device import cli, doctor, files, options
from edgeprune_device.errors import GateError
from edgeprune_device.installation import contents, describe, install, measure
from edgeprune_device.installation.measure import Measured

from .installing import QUICK, leftovers, quiet

MEASURED = Measured("fp32", "trt", "0" * 64, None)
PLAN = b"an engine"


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """The measurement takes TensorRT, and `edgeprune engine` builds an engine; both are fakes."""
    plan = tmp_path / "engine.plan"
    plan.write_bytes(PLAN)
    monkeypatch.setattr(measure, "measure", lambda *_: MEASURED)
    monkeypatch.setattr(measure, "run_tool", lambda *_: f'[{{"path": "{plan}"}}]'.encode())


def flip(path):
    """Change one bit, as a memory card that rots does."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def replace_by_link(path):
    """The same content, but of a file that anybody may own."""
    path.rename(path.parent.parent.parent / path.name)
    path.symlink_to(path.parent.parent.parent / path.name)


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = [flip, lambda path: path.unlink(), lambda path: path.write_bytes(b""), replace_by_link, replace_by_pipe]


@pytest.mark.parametrize("name", contents.NAMES)
@pytest.mark.parametrize("damage", DAMAGES, ids=["bit", "missing", "empty", "link", "pipe"])
def test_damaged_file_is_reported_and_repaired_by_the_same_bundle(
    releases, make, engine, service, monkeypatch, capfd, name, damage
):
    path = make(1)
    release = install.install(releases, path, QUICK, quiet)
    folder = releases.folder(release)
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}
    assert contents.problem(releases, release) is None and before["model.plan"] == PLAN
    damage(folder / name)

    assert str(folder / name) in describe.describe(releases)["releases"][0]["problem"]
    assert cli.main(["releases", str(releases.root)]) == 0
    assert f"DAMAGED: {folder / name}" in capfd.readouterr().out
    monkeypatch.setattr(options, "ROOT", releases.root)
    assert doctor.releases().state == "damaged" and str(folder / name) in doctor.releases().detail

    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("it was measured again"))
    steps = []
    assert install.install(releases, path, QUICK, lambda *step: steps.append(step)) == release
    assert [step[0] for step in steps][-2:] == ["repair", "verify"] and str(folder / name) in steps[-2][1]
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before
    assert not (folder / name).is_symlink() and contents.problem(releases, release) is None
    assert service.restarts == 1 and not leftovers(releases) and doctor.releases().state == "ok"


def test_list_that_was_changed_with_its_file_does_not_pass(releases, make, unmeasured, service):
    """The bundle's signature determines the model, whatever the list says."""
    release = install.install(releases, make(1), QUICK, quiet)
    folder = releases.folder(release)
    (folder / "model.onnx").write_bytes(b"another model")
    digest = files.sha256(folder / "model.onnx")
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    changed = [f"{digest}  model.onnx" if line.endswith("model.onnx") else line for line in lines]
    (folder / "SHA256SUMS").write_text("\n".join(changed) + "\n")
    assert "SHA256SUMS: does not match the bundle" in contents.problem(releases, release)


def test_the_list_is_one_that_sha256sum_checks(releases, make, engine, service):
    folder = releases.folder(install.install(releases, make(1), QUICK, quiet))
    done = subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0 and sorted(line.split(":")[0] for line in done.stdout.splitlines()) == [
        "bundle.epb", "labels.txt", "manifest.json", "model.onnx", "model.plan",
    ]  # fmt: skip


def test_files_of_a_release_that_was_rolled_back_to_are_repaired(releases, make, engine, service):
    former, _ = (install.install(releases, make(n), QUICK, quiet) for n in (1, 2))
    for name in ("model.onnx", "model.plan"):
        flip(releases.folder(former) / name)
    assert install.roll_back(releases, None, None, quiet) == former
    assert contents.problem(releases, former) is None


def test_files_of_a_release_are_repaired_where_a_failed_installation_returns_to_it(releases, make, engine, service):
    former = install.install(releases, make(1), QUICK, quiet)
    flip(releases.folder(former) / "model.onnx")
    service.sick = {2}
    with pytest.raises(GateError, match="rolled back, because"):
        install.install(releases, make(2), QUICK, quiet)
    assert releases.current() == former and contents.problem(releases, former) is None


def test_engine_of_another_runtime_does_not_stay_behind(releases, make, engine, service, monkeypatch):
    path = make(1)
    install.install(releases, path, QUICK, quiet)
    monkeypatch.setattr(measure, "measure", lambda *_: Measured("fp32", "ort", "0" * 64, None))
    release = install.install(releases, path, install.InstallOptions(runtime="ort", health_s=0.1), quiet)
    assert not (releases.folder(release) / "model.plan").exists() and contents.problem(releases, release) is None


def test_damaged_bundle_is_reported(releases, make, unmeasured, service):
    release = install.install(releases, make(1), QUICK, quiet)
    flip(releases.folder(release) / "bundle.epb")
    assert "bundle.epb" in contents.problem(releases, release)
    assert "bundle.epb" in describe.describe(releases)["releases"][0]["problem"]


def test_doctor_exits_with_1_where_a_release_is_damaged(releases, make, unmeasured, service, monkeypatch, capfd):
    monkeypatch.setattr(options, "ROOT", releases.root)
    monkeypatch.setattr(doctor, "CHECKS", [doctor.releases])
    assert doctor.releases().state == "note"
    flip(releases.folder(install.install(releases, make(1), QUICK, quiet)) / "model.onnx")
    assert cli.main(["doctor"]) == GateError.exit_code
    assert "damaged on this machine: releases" in capfd.readouterr().err
