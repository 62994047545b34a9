"""Provides the names in the documentation while its blocks run: `best.pt`, `data.yaml`, `pilot@drone`, …

Each page gets a fresh folder with a separate home, and the files that the page names but does not make itself.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..host import conftest, drone_root  # conftest makes the folder `fakes` importable
from . import blocks, host
from .blocks import Block
from .drone import STAND_IN, Drone

ROOT = Path(__file__).parents[2]
#: README's first command; all other pages use its results.
FIRST = next(b for b in blocks.read(ROOT / "README.md", "README.md") if b.info == "main")
NAME = "demo-jetson-orin-0p2"
#: The files of `edgeprune build`, and their paths in the pages.
_BUILT = ("pruned.pt", "tuned.pt", "model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-fp16.onnx")

#: .ci/run runs `python3 -m venv` and `pip install` for real. Here they only check their arguments.
_PYTHON3 = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then
  for folder; do :; done
  mkdir -p "$folder/bin" && : >"$folder/bin/activate"
else exec python "$@"; fi
"""
_PIP = """#!/bin/sh
[ "$1" = install ] || exit 1
shift
for what; do
  case "$what" in
    -e|--editable) ;;
    .*) [ -f "${what%%[[]*}/pyproject.toml" ] || { echo "pip: $what: no such package" >&2; exit 1; };;
    edgeprune*|tensorboard|mlflow|wandb|onnxruntime*) ;;
    *) echo "pip: $what: not expected" >&2; exit 1;;
  esac
done
"""


_NEWER = """
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle

old = Bundle.open(".old.epb")
said = {**old.manifest.to_json(), "counter": old.manifest.counter + 1, "name": "newer"}
del said["payloads"]
Bundle.write("newer.epb", said, {name: old.read(name) for name in old.payloads}, keys.load_or_create())
"""


class World:
    """The host with its commands, one build that the pages share, and a drone if it can run here."""

    def __init__(self, folder: Path, drone: Drone | None) -> None:
        self.folder, self.drone = folder, drone
        self._socket = tempfile.mkdtemp(prefix="docs-") + "/host"
        self._inputs()
        self._programs()
        environment = {
            **os.environ, **self._own(folder / "server"),
            "PYTHONPATH": f"{STAND_IN}:{os.environ.get('PYTHONPATH', '')}",
            "DOCS_DEMO_WEIGHTS": str(folder / "inputs/best.pt"),
        }  # fmt: skip
        self._server = subprocess.Popen(
            [sys.executable, host.__file__, self._socket], env=environment, stdout=subprocess.PIPE, cwd=folder
        )
        assert self._server.stdout.readline() == b"ready\n"
        self.home = folder / "home"  # shared by all pages, because it holds the keys of the drone
        self._done: dict[str, Path] = {}
        self._set_up = self._deployed = False

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()
        shutil.rmtree(Path(self._socket).parent)

    def page(self, name: str) -> Page:
        folder = self.folder / "pages" / name.replace("/", "-")
        folder.mkdir(parents=True)
        return Page(self, folder)

    def set_up(self) -> None:
        """Set up the drone once, as in the first block of the pages about drones."""
        if not self._set_up:
            self.check(self.run("edgeprune setup pilot@drone --with ort", self.folder), "setup")
            self._set_up = True

    def deploy(self) -> None:
        """Deploy a release, so that one is in use on the drone."""
        if not self._deployed:
            self.check(self.run(f"edgeprune deploy {self.built}/{NAME}.epb pilot@drone", self.folder), "deploy")
            self._deployed = True

    @property
    def built(self) -> Path:
        """The folder of the shared build of the stand-in demo, made with README's first command."""
        if FIRST.text not in self._done:
            self.page("first").run(FIRST)
        return self._done[FIRST.text] / "runs" / NAME

    def run(self, text: str, folder: Path, on_drone: bool = False) -> subprocess.CompletedProcess:
        """Run a shell script, which stops at its first failure and ends after four minutes."""
        command = ["bash", "-euo", "pipefail", "-c", text]
        if on_drone:
            command = ["ssh", "pilot@drone", "PATH=$HOME/.local/bin:$PATH bash -euo pipefail -s"]
        return subprocess.run(
            command, cwd=folder, env=self.environment(), capture_output=True, text=True, timeout=240,
            input=text if on_drone else "",
        )  # fmt: skip

    def check(self, done: subprocess.CompletedProcess, what: str = "") -> None:
        output = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, f"{what} ended with {done.returncode}\n{output}"

    def environment(self) -> dict[str, str]:
        path = f"{self.folder}/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
        kept = {key: os.environ[key] for key in ("LANG", "LC_ALL", "PIP_INDEX_URL", "TMPDIR") if key in os.environ}
        return {**kept, **self._own(self.home), "PATH": path}

    def _own(self, home: Path) -> dict[str, str]:
        home.mkdir(exist_ok=True)
        return {
            "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "YOLO_CONFIG_DIR": str(home / ".config"),
            "EDGEPRUNE_HOME": str(home / ".config/edgeprune"), "EDGEPRUNE_SPOOL": str(home / "spool"),
            "EDGEPRUNE_REPORTS": str(home / "reports"), "OMP_NUM_THREADS": "1", "YOLO_VERBOSE": "False",
            "MPLCONFIGDIR": str(home / ".cache"),
        }  # fmt: skip

    def _inputs(self) -> None:
        from edgeprune import demo

        folder = self.folder / "inputs"
        folder.mkdir(parents=True)
        names = dict(enumerate(demo.NAMES))
        conftest.dataset(folder, train=8, val=4).write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
        model = conftest.short(nc=len(names))
        model.names = names
        conftest.save(model, folder / "best.pt")

    def _programs(self) -> None:
        folder = self.folder / "bin"
        folder.mkdir()
        for name in ("edgeprune", "python"):
            code = host.CLIENT.format(python=sys.executable, socket=self._socket, kind=name)
            (folder / name).write_text(code)
        config = self.drone.config if self.drone else "/dev/null"
        (folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        (folder / "scp").write_text(f'#!/bin/sh\nexec {shutil.which("scp")} -F {config} "$@"\n')
        (folder / "python3").write_text(_PYTHON3)
        (folder / "pip").write_text(_PIP)
        for program in folder.iterdir():
            program.chmod(0o755)


class Page:
    """A folder in which the blocks of one page run one after another."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self._have: set[str] = set()
        (folder / "device").symlink_to(ROOT / "device")
        (folder / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")

    def run(self, block: Block) -> None:
        """Run the block; raise AssertionError if it fails."""
        self._provide(block.text)
        if block.title:
            (self.folder / block.title).write_text(block.text)
            return
        before = self.world._done.get(block.text)
        if before and "edgeprune build" in block.text:  # the same command on the same files has the same results
            shutil.copytree(before / "runs", self.folder / "runs", dirs_exist_ok=True)
            return
        done = self.world.run(block.text, self.folder, on_drone=block.mark == "drone")
        self.world.check(done, f"{block}\n{block.text}")
        self.world._done[block.text] = self.folder

    def _provide(self, text: str) -> None:
        """Provide the missing files that the block names."""
        for pattern, make in _THINGS.items():
            if pattern not in self._have and re.search(pattern, text):
                self._have.add(pattern)
                make(self.world, self.folder)

    def run_python(self, blocks: list[Block]) -> None:
        """Run the page's Python blocks as one program, so that later blocks see earlier names."""
        lines: list[str] = []
        for block in blocks:
            self._provide(block.text)
            lines += [""] * (block.line - len(lines)) + block.text.splitlines()
        script = self.folder / "page.py"
        script.write_text("\n".join(lines) + "\n")
        self.world.check(self.world.run(f"python {script.name}", self.folder), f"the Python of {blocks[0].page}")


def _own_data(world: World, folder: Path) -> None:
    shutil.copytree(world.folder / "inputs", folder, dirs_exist_ok=True)


def _demo_weights(world: World, folder: Path) -> None:
    """A detector of normal size as best.pt, because the small one's latency hardly depends on its channels."""
    from edgeprune import demo

    shutil.copy(demo.WEIGHTS, folder / "best.pt")


def _results(world: World, folder: Path) -> None:
    for name in _BUILT:
        shutil.copy(world.built / name, folder)


def _bundle(world: World, folder: Path) -> None:
    shutil.copy(world.built / f"{NAME}.epb", folder / "demo.epb")


def _newer(world: World, folder: Path) -> None:
    """A bundle of the same files with a higher counter."""
    shutil.copy(world.built / f"{NAME}.epb", folder / ".old.epb")
    (folder / ".newer.py").write_text(_NEWER)
    world.check(world.run("python .newer.py", folder), "a newer bundle")


def _stick(world: World, folder: Path) -> None:
    shutil.copy(world.built / f"{NAME}.epb", folder / "demo.epb")
    world.drone.put(folder / "demo.epb", "/media/stick")


def _deployed(world: World, folder: Path) -> None:
    world.deploy()


def _coco(world: World, folder: Path) -> None:
    """The same images with COCO's JSON."""
    from edgeprune import demo

    for split in ("train", "val"):
        pictures = sorted((world.folder / "inputs/images" / split).iterdir())
        shutil.copytree(pictures[0].parent, folder / "coco" / split)
        boxes: list[dict] = []
        for number, picture in enumerate(pictures):
            for line in (world.folder / "inputs/labels" / split / f"{picture.stem}.txt").read_text().splitlines():
                kind, x, y, w, h = (float(word) * 96 for word in line.split())
                box = {"bbox": [x - w / 2, y - h / 2, w, h], "area": w * h, "iscrowd": 0, "image_id": number}
                boxes.append({**box, "id": len(boxes), "category_id": int(kind / 96)})
        images = [{"id": i, "file_name": p.name, "width": 96, "height": 96} for i, p in enumerate(pictures)]
        kinds = [{"id": i, "name": name} for i, name in enumerate(demo.NAMES)]
        text = json.dumps({"images": images, "annotations": boxes, "categories": kinds})
        (folder / f"coco/{split}.json").write_text(text)


def _image(world: World, folder: Path) -> None:
    system = drone_root.ext4(drone_root.tree(folder / ".tree"), folder / ".app", 48)
    drone_root.gpt(folder / "drone.img", [("APP", 48, system)])


def _rootfs(world: World, folder: Path) -> None:
    drone_root.tree(folder / "rootfs")


def _base(world: World, folder: Path) -> None:
    """An arm64 base image, as an OCI archive."""
    from ..host.oci_layout import SYSTEM, Base

    made = Base(folder / ".base").layer(SYSTEM)
    made.index(made.image())
    subprocess.run(["tar", "-C", str(folder / ".base"), "-cf", str(folder / "base.tar"), "."], check=True)


#: Name in a page -> function that provides it. Files that a page makes itself replace the provided ones.
_THINGS = {
    r"\bbest\.pt|\bdata\.yaml|\boriginal\.pt": _own_data,
    r"--latency-ratio": _demo_weights,
    r"\b(pruned|tuned)\.pt|\bmodel\.(fp|int)": _results,
    r"(?<![\w/])demo\.epb": _bundle,
    r"\bnewer\.epb": _newer,
    r"/media/stick/": _stick,
    r"/opt/edgeprune/current|edgeprune run --output unix:/tmp/": _deployed,
    r"\bcoco/": _coco,
    r"\bdrone\.img": _image,
    r"\brootfs\b": _rootfs,
    r"\bbase\.tar": _base,
}
