"""An installation, killed before each operation on the file system that it makes, none skipped: an audit hook sees them
all (every file opened for writing, folder, link, rename, removal), so that a step added later is killed, too."""

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
from edgeprune_device import cli
from edgeprune_device.errors import GateError, InputError, SignatureError
from edgeprune_device.installation import assembly, install, restart
from edgeprune_device.installation.options import InstallOptions
from edgeprune_device.reports.spool import Spool
from edgeprune_device.trust.bundle import Bundle

from .installing import QUICK, leftovers, quiet


def send(releases, path):
    """What `edgeprune deploy` puts on the device: the envelope, and the pieces of what it lacks."""
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


# --- a real one ------------------------------------------------------------------------------------------------------


def test_a_bundle_is_verified_measured_and_in_use(releases, make, capfd):
    path = make(7)
    assert cli.main(["install", str(path), "--root", str(releases.root)]) == 0
    out = capfd.readouterr().out
    release = releases.current()
    assert release.state == "good" and release.counter == 7 and releases.counter == 7
    assert (release.precision, release.runtime) == ("fp32", "ort")
    assert release.accuracy == {"map50_95": 1.0, "host_map50_95": 1.0, "delta": 0.0}
    assert f"{release} is in use, and good" in out and "fp32 by ort, mAP50-95 1.0000" in out
    assert [entry.id for entry in Spool().entries()] == [release.report]
    bundle = releases.open(release)
    folder = releases.root / "current"
    assert (folder / "bundle.epb").read_bytes() == path.read_bytes()
    assert (folder / "model.onnx").read_bytes() == bundle.read("model.fp32.onnx")
    assert (folder / "labels.txt").read_text() == "person\ncar\n"
    assert json.loads((folder / "manifest.json").read_text())["counter"] == 7
    assert not leftovers(releases)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_bundle_from_the_past_is_refused_and_a_rollback_is_not(releases, make, unmeasured, capfd):
    new, old = make(9), make(8)
    install.install(releases, old, QUICK, quiet)
    install.install(releases, new, QUICK, quiet)
    for _ in range(2):
        with pytest.raises(SignatureError, match=r"its counter is 8, here 9 holds.*--allow-older"):
            install.install(releases, old, QUICK, quiet)
    assert releases.current().counter == 9
    assert cli.main(["rollback", str(releases.root)]) == 0
    assert releases.current().counter == 8 and releases.counter == 9
    assert [r.state for r in releases.all()] == ["bad", "good"]
    assert "is in use, and good" in capfd.readouterr().out


def test_an_older_bundle_is_taken_when_that_is_said_and_the_record_tells(releases, make, unmeasured):
    install.install(releases, make(9), QUICK, quiet)
    release = install.install(releases, make(3), InstallOptions(allow_older=True), quiet)
    assert release.older and releases.current() == release and releases.counter == 9


def test_an_untrusted_bundle_is_taken_only_when_that_is_said_and_the_record_tells(releases, make, unmeasured):
    from nacl.signing import SigningKey

    path = make(1, key=SigningKey.generate())
    with pytest.raises(SignatureError, match="not trusted here"):
        install.install(releases, path, QUICK, quiet)
    assert releases.all() == []
    release = install.install(releases, path, InstallOptions(allow_untrusted=True), quiet)
    assert not release.trusted and releases.open(releases.current()).trusted is False


def test_the_same_bundle_again_is_verified_and_nothing_else(releases, make, unmeasured, service):
    path = make(1)
    release = install.install(releases, path, QUICK, quiet)
    said = []
    assert install.install(releases, path, QUICK, lambda *words: said.append(words)) == release
    assert said[-1] == ("verify", f"{release} is in use already, and intact") and service.restarts == 1


def test_the_same_bundle_again_repairs_a_damaged_one(releases, make, unmeasured):
    path = make(1)
    release = install.install(releases, path, QUICK, quiet)
    damaged = releases.folder(release) / "bundle.epb"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    install.install(releases, path, QUICK, quiet)
    assert releases.open(releases.current()).sha256 == release.bundle_sha256


def test_the_same_bundle_with_another_precision_or_runtime_is_installed_anew(releases, make, unmeasured, service):
    path = make(1)
    for number, asked in enumerate(({}, {"precision": "fp16"}, {"runtime": "trt"}, {"precision": "fp32"}), 1):
        install.install(releases, path, replace(QUICK, **asked), quiet)
        assert service.restarts == min(number, 3)


def test_a_bad_release_that_is_tried_again_has_all_its_starts_and_what_it_falls_back_to(
    releases, make, unmeasured, service
):
    bad, good = (install.install(releases, make(n), QUICK, quiet) for n in (1, 2))
    releases.mark(replace(bad, starts=3), "bad", "3 starts")
    service.watch = lambda *_: (None, "its source gives no frames")
    again = install.roll_back(releases, bad.identity, None, quiet)
    assert releases.current() == again and (again.state, again.starts) == ("trial", 0)
    assert releases.fallback() == good


def test_it_can_be_rolled_back_to_any_release_that_is_kept(releases, make, unmeasured, capfd):
    made = [install.install(releases, make(n), InstallOptions(keep=4, health_s=0.1), quiet) for n in (1, 2, 3)]
    root = str(releases.root)
    assert cli.main(["rollback", root, "--to", made[0].identity[:8]]) == 0
    assert releases.current() == made[0]
    assert cli.main(["rollback", root]) == 0  # 3 is bad now, 2 is not
    assert releases.current() == made[1]
    assert cli.main(["rollback", root, "--to", made[2].identity]) == 0  # it was bad: on trial, and then seen healthy
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
        # shutil.rmtree names what it removes relative to an open folder: only installations do so here.
        return event in ("os.remove", "os.rmdir") and not str(arguments[0]).startswith("/")
    return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def in_child(act, at, number):
    """Run `act()` in a forked process that does `at()` before the write with this number; the wait status, or None
    where there were not so many writes. The hook cannot be removed, hence the process."""
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
    """A device with two releases, the second in use; what was sent of a third that is like it but for its counter; and
    a way back to this state."""
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
    """`current` names a complete, verified release."""
    release = releases.current()
    assert release is not None and release.counter in counters and release.state != "bad"
    assert releases.open(release).sha256 == release.bundle_sha256
    return release


@pytest.mark.parametrize("sick", [False, True])
def test_killed_before_any_write_it_leaves_a_verified_release_in_use_and_goes_on(scene, releases, service, sick):
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
    assert number > 20  # the writes of an installation: an empty loop proves nothing
    print(f"killed before each of {number - 1} writes")


def test_with_a_full_disk_from_any_write_on_it_leaves_a_verified_release_in_use_and_says_so(scene, releases):
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


def test_a_rollback_killed_before_any_write_leaves_a_verified_release_in_use(scene, releases, service):
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


# --- a process of its own --------------------------------------------------------------------------------------------
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


def test_it_goes_on_when_whoever_started_it_is_gone_and_the_same_ticket_finds_it(releases, make):
    path = make(1)
    first = start(releases, path, "--ticket", "ticket00")
    read_until(first, "measure")
    first.kill()
    first.wait()
    second = start(releases, path, "--ticket", "ticket00")
    found, _ = result(second)
    assert second.returncode == 0 and found["release"]["sequence"] == 1
    assert found["current"] == found["release"]["identity"]
    third = start(releases, path, "--ticket", "ticket00")  # nothing is done again
    assert result(third)[0] == found and third.returncode == 0
    assert len(list((releases.root / ".installations").iterdir())) == 1


def test_the_same_request_without_a_ticket_attaches_and_another_one_is_turned_away(releases, make):
    path, other = make(1), make(2)
    first = start(releases, path)
    read_until(first, "measure")
    second, third = start(releases, path), start(releases, other)
    found, err = result(third)
    assert found is None and third.returncode == 2
    assert err.startswith("edgeprune: error: another installation is at work here") and err.count("\n") == 1
    assert result(second)[0]["release"]["counter"] == 1 and second.returncode == 0
    assert result(first)[0]["exit"] == 0
    assert [r.counter for r in releases.all()] == [1]


def worker_of(process):
    """The installation's own process: the only child of the command that follows it."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(listed) == 1
    return int(listed[0])


def test_killed_itself_it_is_said_and_the_same_command_goes_on(releases, make):
    path = make(1)
    first = start(releases, path)
    read_until(first, "measure")
    os.kill(worker_of(first), signal.SIGKILL)
    found, err = result(first)
    assert found is None and first.returncode == 2 and "killed before it ended" in err and err.count("\n") == 1
    second = start(releases, path, seconds=0)
    assert result(second)[0]["exit"] == 0 and not leftovers(releases)


def test_ctrl_c_ends_it_and_nothing_is_left(releases, make, own_signals):
    first = start(releases, make(1), seconds=30)
    read_until(first, "measure")
    first.send_signal(signal.SIGINT)
    found, _ = result(first)
    assert first.returncode == 130 and found["exit"] == 130 and found["current"] is None
    assert releases.all() == [] and not leftovers(releases)


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
        (["--keep", "1"], "leaves nothing to go back to"),
        (["--output", "-"], "--output belongs to"),
        (["--unit", "a", "--source", "b"], "give one of the two"),
        (["--incoming", "0" * 64], "not both"),
        (["--ticket", "../../x"], "--ticket"),
        (["--max-drop", "0"], "must be a number above 0"),
        (["--health", "x"], "must be a number above 0"),
        (["--unit", "a\nb"], "not a unit's name"),
        (["--source", "csi"], "no systemd here"),
        (["--root", "/proc/nothing"], "/proc"),
        (["--precision", "int7"], "invalid choice"),
        (["--runtime", "quantum"], "unknown runtime"),
    ],
)
def test_bad_use_is_one_line_and_leaves_nothing(releases, make, options, words, capfd, monkeypatch):
    monkeypatch.setattr(restart, "_SYSTEMD", Path("/nonexistent"))
    argv = ["install", str(make(1)), *(options if "--root" in options else ["--root", str(releases.root), *options])]
    assert cli.main(argv) == 2
    error = capfd.readouterr().err
    assert words in error and error.count("\n") == 1
    assert releases.all() == [] and releases.current() is None


def test_something_else_than_a_bundle_is_refused(releases, tmp_path, capfd):
    (tmp_path / "a.epb").write_bytes(b"x" * 1000)
    paths = [[str(tmp_path / name)] for name in ("a.epb", "none.epb")]
    for argv in (*paths, ["--incoming", "0" * 64], ["--incoming", "x"]):
        assert cli.main(["install", *argv, "--root", str(releases.root)]) in (1, 2)
        error = capfd.readouterr().err
        assert error.count("\n") == 1 and error.startswith("edgeprune: error: ")
    assert releases.all() == [] and not leftovers(releases)
