"""No library installs, downloads or sends anything while edgeprune runs, even if Ultralytics considers itself
online.
"""

import json
import os
import subprocess
import sys

import pytest
from edgeprune_device import interpreter

from .small import dataset, network, save

#: Records every process and every use of the network, prevents pip, and answers like a network.
RECORDER = """
import os, socket, sys

def write(*words):
    descriptor = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (" ".join(map(str, words)).replace("\\n", " ") + "\\n").encode())
    os.close(descriptor)

def hook(event, args):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
        write("process", *(args[1] if isinstance(args[1], (list, tuple)) else [args[1]]))
        if "pip" in map(str, args[1]) or "uv" in map(str, args[1]):
            raise FileNotFoundError("no pip here")
    elif event == "os.system":
        write("process", args[0])
    elif event in ("socket.connect", "socket.sendto") and args[0].family != socket.AF_UNIX:
        write("network", event, args[1])
        raise OSError("no network here")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        write("network", event, args[0])

def resolved(host, *more, **named):
    write("network", "getaddrinfo", host)
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]

socket.getaddrinfo = resolved
sys.addaudithook(hook)
"""
#: Runs commands in one process, as a notebook would: [{words, code, said}].
RUNNER = """
import contextlib, io, json, os, sys
if sys.argv[1] == "before":
    import ultralytics.utils.patches  # in the user's own program, before edgeprune is imported
    from PIL import Image
    with contextlib.suppress(ModuleNotFoundError):
        Image.open("text/images/val/000.png")
    os.rename(os.environ["RECORD"], os.environ["RECORD"] + ".stock")
from edgeprune_device import cli
answers = []
for words in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words.split())
    answers.append({"words": words, "code": code, "said": err.getvalue() + out.getvalue()})
import ultralytics.utils as u
print("TOLD" + json.dumps([answers, u.ONLINE, u.AUTOINSTALL]))
"""
#: Invalid image files, and the error for each.
BAD = {
    "empty": (b"", "the file is empty"),
    "text": (b"no image at all", "not an image"),
    "cut": (b"\x89PNG\r\n\x1a\n" + b"\0" * 9, "not an image"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """best.pt, good/, a data set with an invalid image in each split for each of BAD, and half/ with one to train
    on.
    """
    folder = tmp_path_factory.mktemp("home")
    save(network(width=0.125), folder / "best.pt")
    dataset(folder / "good")
    for name, (content, _) in BAD.items():
        dataset(folder / name)
        for split in ("train", "val"):
            (folder / name / "images" / split / "000.png").write_bytes(content)
    dataset(folder / "half")
    (folder / "half" / "images" / "train" / "000.png").write_bytes(b"no image at all")
    (folder / "recorder").mkdir()
    (folder / "recorder" / "sitecustomize.py").write_text(RECORDER)
    return folder


def run(world, when, commands):
    """([{words, code, said}], Ultralytics' ONLINE and AUTOINSTALL, the record)."""
    record = world / "record.txt"
    record.write_text("")
    ours = ("YOLO_AUTOINSTALL", "YOLO_OFFLINE", "PYTEST_CURRENT_TEST")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        interpreter.command(RUNNER, when, json.dumps(commands)), cwd=world, capture_output=True, text=True,
        env={**kept, "PYTHONPATH": str(world / "recorder"), "RECORD": str(record)},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("TOLD")]
    assert lines, done.stderr[-3000:]
    return (*json.loads(lines[0][len("TOLD") :]), record.read_text().splitlines() if record.exists() else [])


def foreign(record):
    """The entries that are neither our processes nor library lookups of ctypes.util."""
    own = f"process {sys.executable} -c {interpreter.START.split()[0]}"
    looks = ("process /sbin/ldconfig ", "process /usr/bin/gcc ", "process /usr/bin/ld ")
    return [line for line in record if not line.startswith((own, *looks))]


#: Ultralytics skips the unreadable image of half/.
JOB = [
    "prune --weights best.pt --ratio 0.2 --data good/data.yaml --out pruned.pt",
    "finetune --weights pruned.pt --data half/data.yaml --epochs 1 --out tuned.pt",
    "export --weights tuned.pt --data good/data.yaml --precision fp32 --out onnx",
    "compare best.pt onnx/model.fp32.onnx --data good/data.yaml --rounds 2",
]
REFUSED = [f"compare best.pt best.pt --data {name}/data.yaml --strict" for name in BAD] + [
    "prune --weights best.pt --ratio 0.2 --data cut/data.yaml --out p.pt --strict",
]


@pytest.mark.parametrize(("when", "job"), [("after", JOB), ("before", [JOB[1].replace("pruned", "best")])])
def test_no_library_installs_downloads_or_sends(world, when, job):
    """before: the user's own program opens an image with Ultralytics first, which considers itself online."""
    refused = REFUSED if when == "after" else REFUSED[1:2]
    answers, online, installs, record = run(world, when, [*refused, *job])
    assert (online, installs) == ((True, True) if when == "before" else (False, False))
    if when == "before":  # the precondition of this test
        stock = (world / "record.txt.stock").read_text()
        assert "network getaddrinfo one.one.one.one" in stock and "pip install" in stock
    assert foreign(record) == []
    for entry in answers:
        assert "pi_heif" not in entry["said"] and entry["code"] == (2 if entry["words"] in REFUSED else 0), entry
        if entry["words"] in REFUSED:
            name = entry["words"].split("--data ")[1].split("/")[0]
            assert f"000.png ({BAD[name][1]}" in entry["said"]


def test_the_users_environment_variables_stay():
    code = "import edgeprune, os; print([os.environ[n] for n in ('YOLO_AUTOINSTALL', 'YOLO_OFFLINE')])"
    for given, left in (({}, "['false', 'true']"), ({"YOLO_AUTOINSTALL": "1", "YOLO_OFFLINE": "0"}, "['1', '0']")):
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith("YOLO_")}, **given}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == left
