"""Tests of an installation that is killed before each of its operations on the file system. An audit hook sees all of
them (every file opened for writing, folder, link, rename, removal), so that a step added later is covered, too."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from edgeprune_device import cli, runtimes
from edgeprune_device.errors import GateError, InputError, SignatureError
from edgeprune_device.installation import assembly, describe, detached, install, measure, restart
from edgeprune_device.installation.options import InstallOptions
from edgeprune_device.reports.spool import Spool
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from fakes import models
from fakes.service import children

from .installing import QUICK, leftovers, quiet


def send(releases, path):
    """Write what `edgeprune deploy` sends: the envelope, and the pieces that the device lacks."""
    bundle, data = Bundle.open(path), path.read_bytes()
    folder = releases.root / "incoming" / bundle.sha256
    folder.mkdir(parents=True, exist_ok=True)
    begin = len(data) - bundle.manifest.size_bytes
    (folder / "envelope").write_bytes(data[:begin])
    for payload in assembly.missing(bundle.manifest, assembly.held(releases)):
        for piece in assembly.pieces(payload):
            at = begin + payload.offset_bytes + piece.offset_bytes
            (folder / piece.name).write_bytes(data[at : at + piece.size_bytes])
    return folder


# --- a real installation ---------------------------------------------------------------------------------------------


def test_bundle_is_verified_measured_and_used(releases, make, capfd):
    path = make(7)
    assert cli.main(["install", str(path), "--root", str(releases.root)]) == 0
    out = capfd.readouterr().out
    release = releases.current()
    assert release.state == "good" and release.counter == 7 and releases.counters == {release.key_fingerprint: 7}
    assert release.precision == "fp32" and release.runtime in runtimes.candidates()
    assert release.accuracy == {"map50_95": 1.0, "host_map50_95": 1.0, "delta": 0.0}
    assert f"{release} is in use, and good" in out and f"fp32 by {release.runtime}, mAP50-95 1.0000" in out
    assert [entry.id for entry in Spool().entries()] == [release.report]
    bundle = releases.open(release)
    folder = releases.root / "current"
    assert (folder / "bundle.epb").read_bytes() == path.read_bytes()
    assert (folder / "model.onnx").read_bytes() == bundle.read("model.fp32.onnx")
    assert (folder / "labels.txt").read_text() == "person\ncar\n"
    assert json.loads((folder / "manifest.json").read_text())["counter"] == 7
    assert not leftovers(releases)


# --- refused bundles -------------------------------------------------------------------------------------------------


def test_older_bundle_is_refused_but_a_rollback_is_not(releases, make, unmeasured, capfd):
    new, old = make(9), make(8)
    install.install(releases, old, QUICK, quiet)
    install.install(releases, new, QUICK, quiet)
    for _ in range(2):
        with pytest.raises(SignatureError, match=r"found counter 8, expected at least 9.*give allow_older=True"):
            install.install(releases, old, QUICK, quiet)
    assert releases.current().counter == 9
    assert cli.main(["rollback", str(releases.root)]) == 0
    assert releases.current().counter == 8 and list(releases.counters.values()) == [9]
    assert [r.state for r in releases.all()] == ["bad", "good"]
    assert "is in use, and good" in capfd.readouterr().out


def test_older_bundle_is_installed_with_the_option_and_recorded(releases, make, unmeasured):
    install.install(releases, make(9), QUICK, quiet)
    release = install.install(releases, make(3), InstallOptions(allow_older=True), quiet)
    assert release.older and releases.current() == release and releases.counters == {release.key_fingerprint: 9}


def test_the_highest_counter_of_one_key_does_not_block_another_key(releases, make, unmeasured, monkeypatch, capfd):
    """A host whose clock stood in the far future, or a thief."""
    from nacl.signing import SigningKey

    monkeypatch.setattr("edgeprune_device.releases.DEFAULT_ROOT", releases.root)
    wrong, right = SigningKey.generate(), SigningKey.generate()
    for name, key in (("wrong", wrong), ("right", right)):
        keys.trust(name, key.verify_key)
    mark = keys.fingerprint(wrong.verify_key)
    install.install(releases, make(9007199254740991, key=wrong), QUICK, quiet)
    with pytest.raises(
        SignatureError, match=r"expected at least 9007199254740991\).*start a new count with edgeprune keys make"
    ):
        install.install(releases, make(1764000001, key=wrong), QUICK, quiet)
    assert install.install(releases, make(1764000000, key=right), QUICK, quiet).state == "good"
    assert cli.main(["keys", "revoke", mark]) == 0
    assert f"counter of {mark} reset in " in capfd.readouterr().out and list(releases.counters.values()) == [1764000000]
    with pytest.raises(SignatureError, match="is revoked here"):
        install.install(releases, make(1764000001, key=wrong), QUICK, quiet)
    keys.revoked()[mark].unlink()  # it was a mistake: the key starts anew
    assert install.install(releases, make(1764000001, key=wrong), QUICK, quiet).state == "good"


def test_untrusted_bundle_is_installed_only_with_the_option_and_recorded(releases, make, unmeasured):
    from nacl.signing import SigningKey

    path = make(1, key=SigningKey.generate())
    with pytest.raises(SignatureError, match="not trusted on this machine"):
        install.install(releases, path, QUICK, quiet)
    assert releases.all() == []
    release = install.install(releases, path, InstallOptions(allow_untrusted=True), quiet)
    assert not release.trusted and releases.open(releases.current()).trusted is False


def test_same_bundle_again_is_only_verified(releases, make, unmeasured, service):
    path = make(1)
    release = install.install(releases, path, QUICK, quiet)
    steps = []
    assert install.install(releases, path, QUICK, lambda *words: steps.append(words)) == release
    assert steps[-1] == ("verify", f"{release} is already in use and intact") and service.restarts == 1


def test_same_bundle_again_repairs_a_damaged_release(releases, make, unmeasured):
    path = make(1)
    release = install.install(releases, path, QUICK, quiet)
    damaged = releases.folder(release) / "bundle.epb"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    install.install(releases, path, QUICK, quiet)
    assert releases.open(releases.current()).sha256 == release.bundle_sha256


def test_same_bundle_with_another_precision_or_runtime_is_reinstalled(releases, make, unmeasured, service):
    path = make(1)
    for number, asked in enumerate(({}, {"precision": "fp16"}, {"runtime": "trt"}, {"precision": "fp32"}), 1):
        install.install(releases, path, replace(QUICK, **asked), quiet)
        assert service.restarts == min(number, 3)


@pytest.mark.parametrize("place", ["current", "releases/ID", "releases/ID/model.onnx"])
def test_obstacles_are_detected_before_the_measurement(releases, make, place, monkeypatch, capfd):
    """A folder that no rename replaces, or a file in place of a folder, would end the installation at its last step."""
    path = make(1)
    place = releases.root / place.replace("ID", Bundle.open(path).sha256[:16])
    if place.parent.name == "releases":
        place.parent.mkdir(parents=True)
        place.write_text("a file")
    else:
        place.mkdir(parents=True)
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("it was measured"))
    with pytest.raises(InputError, match=f"{place}: is in the way .*; move"):
        install.install(releases, path, QUICK, quiet)
    if place.name == "current":
        assert "is in the way" in describe.describe(releases)["problem"]
        with pytest.raises(InputError, match="is in the way"):
            install.roll_back(releases, None, None, quiet)


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": 1, "counter": -1}', "[" * 100000])
def test_a_damaged_counter_is_reported_with_a_remedy_and_does_not_block_a_rollback(
    releases, make, unmeasured, service, content
):
    former, _ = (install.install(releases, make(n), QUICK, quiet) for n in (1, 2))
    state = releases.root / "state.json"
    state.write_text(content)
    words = r"state\.json: holds no counters \(found .*, expected .*\); remove the file: "
    with pytest.raises(InputError, match=words):
        install.install(releases, make(3), QUICK, quiet)
    described = describe.describe(releases)
    assert "holds no counters" in described["problem"] and described["current"] == releases.current().identity
    assert install.roll_back(releases, None, None, quiet) == former
    with pytest.raises(InputError, match=words):  # it would be on trial, and its confirmation writes the counter
        install.roll_back(releases, releases.all()[0].identity, None, quiet)
    assert releases.current() == former
    state.unlink()
    assert install.install(releases, make(3), QUICK, quiet).state == "good"


def test_a_retried_bad_release_has_all_its_starts_and_a_fallback(releases, make, unmeasured, service):
    bad, good = (install.install(releases, make(n), QUICK, quiet) for n in (1, 2))
    releases.mark(replace(bad, starts=3), "bad", "3 starts")
    service.watch = lambda *_: (None, "the source delivers no frames")
    again = install.roll_back(releases, bad.identity, None, quiet)
    assert releases.current() == again and (again.state, again.starts) == ("trial", 0)
    assert releases.fallback() == good


def test_rollback_to_any_kept_release_works(releases, make, unmeasured, capfd):
    made = [install.install(releases, make(n), InstallOptions(keep=4, health_s=0.1), quiet) for n in (1, 2, 3)]
    root = str(releases.root)
    assert cli.main(["rollback", root, "--to", made[0].identity[:8]]) == 0
    assert releases.current() == made[0]
    assert cli.main(["rollback", root]) == 0  # 3 is bad now, 2 is not
    assert releases.current() == made[1]
    # It was bad, so it is on trial and then found healthy.
    assert cli.main(["rollback", root, "--to", made[2].identity]) == 0
    assert releases.current().identity == made[2].identity and releases.current().state == "good"
    capfd.readouterr()
    assert cli.main(["releases", root]) == 0
    assert f"*  {made[2].identity}  tiny  good" in capfd.readouterr().out
    assert cli.main(["rollback", root, "--to", made[2].identity]) == 2
    assert cli.main(["rollback", root, "--to", "ffff"]) == 2
    assert cli.main(["rollback", str(releases.root / "nowhere")]) == 2
    assert capfd.readouterr().err.count("\n") == 3


# --- killed, and out of space, before every operation -----------------------------------------------------------------
WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")
MAKES = ("open", "os.mkdir", "os.symlink", "os.link")


def is_write(event, arguments, root):
    """Whether this audit event changes something below `root`."""
    if event not in WRITES or not str(arguments[1 if event in ("os.symlink", "os.rename") else 0]).startswith(root):
        # shutil.rmtree uses paths relative to an open folder; only installations call it here.
        return event in ("os.remove", "os.rmdir") and not str(arguments[0]).startswith("/")
    return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def in_child(act, at, number):
    """Run `act()` in a forked process that does `at()` before the write with this number. Return the wait status, or
    None if there were fewer writes. A separate process is needed because the hook cannot be removed."""
    pid = os.fork()
    if pid == 0:
        try:
            count, root = [0], str(act.root)

            def hook(event, arguments):
                if event in WRITES and is_write(event, arguments, root):
                    count[0] += 1
                    if count[0] == number or (count[0] > number and at is no_space):
                        at(event)

            sys.addaudithook(hook)
            code = 0
            try:
                act()
            except (GateError, InputError) as error:
                code = 1 if isinstance(error, GateError) else 2
                if "\n" in str(error):
                    code = 99
            os._exit(code if count[0] >= number else 77)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(98)
    status = os.waitpid(pid, 0)[1]
    return None if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 77 else status


def killed(event):
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(event):
    if event in MAKES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Install:
    def __init__(self, releases, send_again, options=QUICK):
        self.root, self._releases, self._send, self._options = releases.root, releases, send_again, options

    def __call__(self):
        return install.install(self._releases, self._send, self._options, quiet)


@pytest.fixture
def scene(releases, make, unmeasured, service, tmp_path):
    """A device with two releases, the second in use; the parts of a third, which differs only in its counter; and a
    function that restores this state."""
    for number in (1, 2):
        install.install(releases, make(number), QUICK, quiet)
    folder = send(releases, make(3))
    shutil.copytree(str(releases.root), str(tmp_path / "before"), symlinks=True)

    def again():
        shutil.rmtree(str(releases.root))
        shutil.copytree(str(tmp_path / "before"), str(releases.root), symlinks=True)
        return folder

    return again


def check_in_use(releases, counters):
    """Check that `current` names a complete, verified release."""
    release = releases.current()
    assert release is not None and release.counter in counters and release.state != "bad"
    assert releases.open(release).sha256 == release.bundle_sha256
    return release


@pytest.mark.parametrize("sick", [False, True])
def test_kill_before_any_write_leaves_a_verified_release_and_the_next_run_continues(scene, releases, service, sick):
    service.sick = {3} if sick else ()
    number = 0
    while True:
        number += 1
        folder = scene()
        status = in_child(Install(releases, folder), killed, number)
        if status is None:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (number, status)
        check_in_use(releases, {2, 3})
        if sick:
            with pytest.raises(GateError):
                install.install(releases, folder, QUICK, quiet)
            assert check_in_use(releases, {1, 2}).counter == 2, number
        else:
            install.install(releases, folder, QUICK, quiet)
            assert check_in_use(releases, {3}).state == "good", number
            assert [r.counter for r in releases.all()] == [3, 2]
            assert not leftovers(releases)
    assert number > 20  # an installation has more writes; an empty loop would prove nothing
    print(f"killed before each of {number - 1} writes")


def test_full_disk_from_any_write_on_leaves_a_verified_release_and_is_reported(scene, releases):
    number = 0
    while True:
        number += 1
        folder = scene()
        status = in_child(Install(releases, folder), no_space, number)
        if status is None:
            break
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 1, 2), (number, status)
        release = check_in_use(releases, {2, 3})
        if os.WEXITSTATUS(status) == 0:
            assert release.counter == 3
        install.install(releases, folder, QUICK, quiet)
        assert not folder.exists() and check_in_use(releases, {3}).state == "good", number
    assert number > 20


def test_rollback_killed_before_any_write_leaves_a_verified_release_in_use(scene, releases, service):
    class Back:
        root = releases.root

        def __call__(self):
            install.roll_back(releases, None, None, quiet)

    number = 0
    while True:
        number += 1
        scene()
        status = in_child(Back(), killed, number)
        if status is None:
            break
        assert os.WIFSIGNALED(status), (number, status)
        if check_in_use(releases, {1, 2}).counter == 2:
            install.roll_back(releases, None, None, quiet)
        assert check_in_use(releases, {1}).state == "good"
    assert number > 3


# --- a separate process ---------------------------------------------------------------------------------------------
SLOW_MEASURE = """
import sys, time
from edgeprune_device import cli
from edgeprune_device.installation import measure
measured = measure.Measured("fp32", "ort", "0" * 64, None)
measure.measure = lambda *_: time.sleep({seconds}) or measured
sys.exit(cli.main(sys.argv[1:]))
"""


def start(releases, path, *options, seconds=3):
    argv = [sys.executable, "-c", SLOW_MEASURE.format(seconds=seconds), "install", str(path), "--json"]
    return subprocess.Popen(
        [*argv, "--root", str(releases.root), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read_until(process, step):
    lines = []
    for line in process.stdout:
        lines.append(json.loads(line))
        if lines[-1].get("step") == step:
            return lines
    raise AssertionError((lines, process.stderr.read()))


def result(process):
    out, err = process.communicate(timeout=60)
    lines = [json.loads(line) for line in out.splitlines()]
    return lines[-1]["result"] if lines and "result" in lines[-1] else None, err


def test_installation_outlives_its_starter_and_the_same_ticket_finds_it(releases, make):
    path = make(1)
    first = start(releases, path, "--ticket", "ticket00")
    read_until(first, "measure")
    first.kill()
    first.wait()
    second = start(releases, path, "--ticket", "ticket00")
    report, _ = result(second)
    assert second.returncode == 0 and report["release"]["sequence"] == 1
    assert report["current"] == report["release"]["identity"]
    third = start(releases, path, "--ticket", "ticket00")  # no step is repeated
    assert result(third)[0] == report and third.returncode == 0
    assert len(list((releases.root / ".installations").iterdir())) == 1


def test_same_request_without_a_ticket_attaches_and_another_one_is_refused(releases, make):
    path, other = make(1), make(2)
    first = start(releases, path)
    read_until(first, "measure")
    second, third = start(releases, path), start(releases, other)
    report, err = result(third)
    assert report is None and third.returncode == 2
    assert (
        err.startswith("edgeprune: error: ") and "another installation is in progress" in err and err.count("\n") == 1
    )
    assert result(second)[0]["release"]["counter"] == 1 and second.returncode == 0
    assert result(first)[0]["exit"] == 0
    assert [r.counter for r in releases.all()] == [1]


def worker_of(process):
    """The process of the installation: the only child of the command that follows it."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(listed) == 1
    return int(listed[0])


def test_killed_installation_is_reported_and_the_same_command_continues(releases, make):
    path = make(1)
    first = start(releases, path)
    read_until(first, "measure")
    os.kill(worker_of(first), signal.SIGKILL)
    report, err = result(first)
    assert report is None and first.returncode == 2 and "killed before it finished" in err and err.count("\n") == 1
    second = start(releases, path, seconds=0)
    assert result(second)[0]["exit"] == 0 and not leftovers(releases)


def test_ctrl_c_ends_the_installation_and_leaves_nothing(releases, make, own_signals):
    first = start(releases, make(1), seconds=30)
    read_until(first, "measure")
    first.send_signal(signal.SIGINT)
    report, _ = result(first)
    assert first.returncode == 130 and report["exit"] == 130 and report["current"] is None
    assert releases.all() == [] and not leftovers(releases)


def endless(releases, make):
    """An installation of a model that never ends, while it measures."""
    argv = [sys.executable, "-m", "edgeprune_device", "install", str(make(2, onnx=models.endless())), "--json"]
    process = subprocess.Popen(
        [*argv, "--root", str(releases.root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    read_until(process, "measure")
    worker = worker_of(process)
    wait(lambda: any(is_busy(child) for child in children(worker)))  # inside the runtime
    return process


def is_busy(pid):
    """Whether a process has computed for two seconds: more than its start takes."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) > 2 * os.sysconf("SC_CLK_TCK")


def wait(what, seconds=60):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_a_model_that_never_ends(releases, make, unmeasured, number, own_signals):
    former = install.install(releases, make(1), QUICK, quiet)
    process = endless(releases, make)
    began = time.monotonic()
    process.send_signal(number)
    ended, _ = result(process)
    assert (ended["exit"], ended["error"]) == (130, "interrupted") and time.monotonic() - began < 20
    assert not releases.at_work() and releases.current() == former and not leftovers(releases)


@pytest.mark.parametrize("stuck", [False, True])
def test_abort_ends_the_installation_at_work(releases, make, unmeasured, capfd, stuck, monkeypatch):
    former = install.install(releases, make(1), QUICK, quiet)
    process = endless(releases, make)
    process.kill()  # as a broken link; the installation goes on
    process.communicate()
    assert releases.at_work()
    if stuck:  # SIGTERM has no effect
        monkeypatch.setattr(detached.signal, "SIGTERM", signal.SIGCONT)
        monkeypatch.setattr(detached, "_END_S", 1.0)
    assert cli.main(["install", "--abort", "--root", str(releases.root)]) == 0
    assert capfd.readouterr().out == f"installation aborted; release in use: {former}\n"
    assert not releases.at_work() and releases.current() == former
    assert cli.main(["install", "--abort", "--root", str(releases.root), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"aborted": False, "current": former.identity}
    install.install(releases, make(3), QUICK, quiet)
    assert releases.current().counter == 3 and not leftovers(releases)


def test_a_benchmark_ends_with_the_installation(releases, make, tmp_path):
    script = "import sys; from edgeprune_device import cli; sys.exit(cli.main(sys.argv[1:]))"
    first = subprocess.Popen(
        [sys.executable, "-c", script, "install", str(make(1)), "--json", "--root", str(releases.root)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    read_until(first, "measure")
    worker, deadline = worker_of(first), time.monotonic() + 20
    while not (bench := Path(f"/proc/{worker}/task/{worker}/children").read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(worker, signal.SIGKILL)
    first.communicate(timeout=20)
    while Path(f"/proc/{bench[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    state = Path(f"/proc/{bench[0]}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


# --- bad use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep", "1"], "expected a whole number, at least 2"),
        (["--output", "-"], "--output: needs --source"),
        (["--unit", "a", "--source", "b"], "give one of the two"),
        (["--incoming", "0" * 64], "cannot be combined"),
        (["--ticket", "../../x"], "--ticket"),
        (["--max-drop", "nan"], "expected a number in [0, 1]"),
        (["--health", "x"], "expected a number above 0"),
        (["--unit", "a\nb"], "invalid unit name"),
        (["--source", "csi"], "systemd does not run here"),
        (["--root", "/proc/nothing"], "/proc"),
        (["--precision", "int7"], "expected one of auto, fp32"),
        (["--runtime", "quantum"], "--runtime: invalid value (found 'quantum'"),
    ],
)
def test_bad_use_is_one_line_and_leaves_nothing(releases, make, options, words, capfd, monkeypatch):
    monkeypatch.setattr(restart, "_SYSTEMD", Path("/nonexistent"))
    argv = ["install", str(make(1)), *(options if "--root" in options else ["--root", str(releases.root), *options])]
    assert cli.main(argv) == 2
    error = capfd.readouterr().err
    assert words in error and error.count("\n") == 1
    assert releases.all() == [] and releases.current() is None


def test_file_that_is_not_a_bundle_is_refused(releases, tmp_path, capfd):
    (tmp_path / "a.epb").write_bytes(b"x" * 1000)
    paths = [[str(tmp_path / name)] for name in ("a.epb", "none.epb")]
    for argv in (*paths, ["--incoming", "0" * 64], ["--incoming", "x"]):
        assert cli.main(["install", *argv, "--root", str(releases.root)]) in (1, 2)
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and error.startswith("edgeprune: error: ")
    assert releases.all() == [] and not leftovers(releases)
