import errno
import os
import subprocess
import sys
import types

import pytest
from edgeprune_device import cli
from edgeprune_device.errors import GateError, InputError, Interrupted


def run(*args, **options):
    """Run the real command in a separate process."""
    return subprocess.run(
        [sys.executable, "-m", "edgeprune_device", *args],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


class Point:
    """An entry point that loads `module`, or raises it."""

    def __init__(self, module):
        self.module = module

    def load(self):
        if isinstance(self.module, BaseException):
            raise self.module
        return self.module


def plugin(action):
    """A command whose `run` does `action`."""

    def act(args):
        if isinstance(action, BaseException):
            raise action
        return action

    def configure(parser):
        parser.add_argument("--threads", type=int)

    return Point(types.SimpleNamespace(HELP="does it", configure=configure, run=act))


@pytest.fixture
def install(monkeypatch):
    def put(**points):
        monkeypatch.setattr(cli, "commands", lambda: points)

    return put


def test_help_lists_the_commands_without_large_imports():
    code = (
        "import sys; from edgeprune_device.cli import main; assert main(['--help']) == 0;"
        "heavy = {'torch', 'ultralytics', 'onnx', 'onnxruntime', 'cv2', 'numpy', 'PIL', 'nacl'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0
    for name in ("bench", "info", "targets"):
        assert f"\n  {name} " in done.stdout
    assert "exit codes" in done.stdout


@pytest.mark.parametrize("args", [["--help"], ["-h"], [], ["bench", "--help"], ["info", "-h"], ["targets", "-h"]])
def test_every_command_has_help(args):
    done = run(*args)
    assert done.returncode == 0 and "usage: edgeprune" in done.stdout and not done.stderr


def test_version():
    assert run("--version").stdout.startswith("edgeprune 0.")


def test_unknown_command_suggests_a_similar_one():
    done = run("bnch")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "edgeprune: error: unknown command 'bnch'; did you mean bench? (see edgeprune --help)\n"


@pytest.mark.parametrize(
    "args, word",
    [
        (["bench", "--thread", "1"], "did you mean --threads"),
        (["bench", "--seconds", "x"], "found 'x', expected a number above 0"),
        (["bench", "--seconds", "nan"], "expected a number above 0"),
        (["bench", "--threads", "0"], "expected a whole number, at least 1"),
        (["bench", "--precision", "fp8"], "invalid value (found 'fp8', expected one of auto, fp32"),
        (["bench", "--precision", "fp61"], "did you mean fp16?"),
        (["bench", "--mdoe", "single", "--seconds", "-1"], "unrecognized arguments: --mdoe; did you mean --mode?"),
        (["engine", "--out"], "expected one argument"),
        (["bench", "a", "b"], "unrecognized arguments: b"),
        (["--frob"], "unknown option"),
        (["bench", "--max-drop", "0.1", "--no-accuracy"], "leave out"),
    ],
)
def test_bad_use_is_one_line_and_exits_with_2(args, word):
    done = run(*args)
    assert done.returncode == 2 and word in done.stderr and done.stderr.count("\n") == 1


def test_mistyped_required_option_is_reported_as_mistyped(install, capsys):
    """argparse reports the missing option; the typing error is more helpful."""

    def configure(parser):
        parser.add_argument("--target", required=True)
        parser.add_argument("--out")

    install(doit=Point(types.SimpleNamespace(HELP="does it", configure=configure, run=lambda args: 0)))
    for args, word in (
        (["--taget", "orin"], "unrecognized arguments: --taget; did you mean --target?"),
        (["--taget=orin"], "--taget=orin; did you mean --target?"),
        (["--frobnicate"], "the following arguments are required: --target"),
        ([], "the following arguments are required: --target"),
    ):
        assert cli.main(["doit", *args]) == 2
        error = capsys.readouterr().err
        assert word in error and "(see edgeprune doit --help)" in error and error.count("\n") == 1
    assert cli.main(["doit", "--target", "orin"]) == 0


def test_help_lists_every_command_once_and_plug_ins_last(install, capsys):
    names = [name for _, group in cli._GROUPS for name in group]
    assert len(names) == len(set(names))
    assert set(cli.commands()) <= set(names)  # every command of this installation is in a group
    install(mine=plugin(0), bench=plugin(0))
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("\n  bench ") < text.index("others:") < text.index("\n  mine ")


def test_host_commands_on_a_drone_are_refused(install, capsys):
    install(bench=plugin(0))
    for name in ("build", "prune", "deploy"):
        assert cli.main([name, "--ratio", "0.2"]) == 2
        assert (
            capsys.readouterr().err
            == f"edgeprune: error: {name}: runs only on the host; install edgeprune there (pip install edgeprune)\n"
        )


@pytest.mark.parametrize(
    "action, code, text",
    [
        (None, 0, ""),
        (0, 0, ""),
        (3, 3, ""),
        (InputError("a.pt: no such file"), 2, "a.pt: no such file"),
        (InputError("two\nlines"), 2, "two lines"),
        (GateError("mAP fell"), 1, "mAP fell"),
        (Interrupted("go on with --resume"), 130, "edgeprune: interrupted: go on with --resume\n"),
        (Interrupted("interrupted; go on with --resume"), 130, "edgeprune: interrupted: go on with --resume\n"),
        (Interrupted("interrupted: the report holds it"), 130, "edgeprune: interrupted: the report holds it\n"),
        (KeyboardInterrupt(), 130, "edgeprune: interrupted: finished work is kept\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"), 2, "/x/y: no space left on device"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), 2, "read-only file system"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"), 2, "/x: permission denied"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/x"), 2, "/x: no such file or directory"),
        (MemoryError(), 2, "not enough memory"),
    ],
)
def test_every_outcome_has_its_exit_code_and_message(install, capsys, action, code, text):
    install(doit=plugin(action))
    assert cli.main(["doit"]) == code
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == (1 if text else 0) and "Traceback" not in error


def test_bug_is_reported_as_such_with_a_traceback_on_demand(install, capsys, monkeypatch):
    install(doit=plugin(ZeroDivisionError("by\nzero")))
    assert cli.main(["doit"]) == 70
    error = capsys.readouterr().err
    assert "report this bug" in error and "ZeroDivisionError: by zero" in error and error.count("\n") == 1
    monkeypatch.setenv("EDGEPRUNE_DEBUG", "1")
    assert cli.main(["doit"]) == 70
    assert "Traceback" in capsys.readouterr().err


def test_broken_plug_in_does_not_affect_the_others(install, capsys):
    install(
        good=plugin(0), bad=Point(ModuleNotFoundError("No module named 'torch'", name="torch")), odd=Point(ValueError())
    )
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "good  does it" in text and "cannot be loaded: ModuleNotFoundError" in text and "ValueError" in text
    assert cli.main(["good"]) == 0
    assert cli.main(["bad"]) == 2
    assert "bad: cannot be loaded (torch is missing" in capsys.readouterr().err


def test_entry_points_of_old_pythons_are_read(monkeypatch):
    # Python 3.8 and 3.9 return a dict of lists.
    point = types.SimpleNamespace(name="bench")
    monkeypatch.setattr(cli.metadata, "entry_points", lambda: {cli.GROUP: [point], "other": []})
    assert cli.commands() == {"bench": point}
    monkeypatch.setattr(cli.metadata, "entry_points", lambda: {})
    assert cli.commands() == {}


def test_abbreviated_options_are_refused(install, capsys):
    install(doit=plugin(0))
    assert cli.main(["doit", "--thr", "1"]) == 2
    assert "--threads" in capsys.readouterr().err


def test_closed_output_gives_no_error():
    shell = f'set -o pipefail; {sys.executable} -c "import sys; from edgeprune_device.cli import main; ' + (
        "import builtins; real = print; code = 0\nfor i in range(200): code = main(['targets', '--json']) or code\n"
        'sys.exit(code)" | head -1'
    )
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=60)
    assert done.returncode == 141 and done.stdout == b"[\n" and done.stderr == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_behind_a_redirection_is_reported():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edgeprune_device", "targets"], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"edgeprune: error: no space left on device\n") and b"Traceback" not in done.stderr


def test_ascii_terminal_gets_ascii(tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = run("grün", env=env, cwd=str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
