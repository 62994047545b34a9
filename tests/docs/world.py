"""What the names of the documentation mean while its blocks are run: `best.pt`, `data.yaml`, `pilot@drone`, …

Each page gets a fresh folder with a home of its own, and in it what the page names and does not make itself.
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

from ..host import drone_root
from ..host.conftest import dataset, save, short
from . import blocks, host
from .blocks import Block
from .drone import STAND_IN, Drone

ROOT = Path(__file__).parents[2]
#: What README tells a newcomer to type; its results serve all other pages.
FIRST = next(b for b in blocks.read(ROOT / "README.md", "README.md") if b.info == "main")
NAME = "demo-jetson-orin-0p2"
#: What `edgeprune build` leaves, and where the pages have it.
_BUILT = ("pruned.pt", "tuned.pt", "model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-fp16.onnx")

#: `python3 -m venv` and `pip install` belong to .ci/run, which does them for real. Here they check their arguments.
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
    """The host with its commands, one build that the pages share, and a drone where this machine can have one."""

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
        self.home = folder / "home"  # of all pages: who has set a drone up has its keys
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
        """What the first block of the drone's pages does, once: a drone is set up when they are read."""
        if not self._set_up:
            self.check(self.run("edgeprune setup pilot@drone --with ort", self.folder), "setup")
            self._set_up = True

    def deploy(self) -> None:
        """Some release is in use on the drone."""
        if not self._deployed:
            self.check(self.run(f"edgeprune deploy {self.built}/{NAME}.epb pilot@drone", self.folder), "deploy")
            self._deployed = True

    @property
    def built(self) -> Path:
        """The folder of the one build: of the stand-in demo, by README's first command."""
        if FIRST.text not in self._done:
            self.page("first").run(FIRST)
        return self._done[FIRST.text] / "runs" / NAME

    def run(self, text: str, folder: Path, on_drone: bool = False) -> subprocess.CompletedProcess:
        """A shell text, stopped at its first failure. After four minutes it is ended."""
        command = ["bash", "-euo", "pipefail", "-c", text]
        if on_drone:
            command = ["ssh", "pilot@drone", "PATH=$HOME/.local/bin:$PATH bash -euo pipefail -s"]
        return subprocess.run(
            command, cwd=folder, env=self.environment(), capture_output=True, text=True, timeout=240,
            input=text if on_drone else "",
        )  # fmt: skip

    def check(self, done: subprocess.CompletedProcess, what: str = "") -> None:
        said = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, f"{what} ended with {done.returncode}\n{said}"

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
        dataset(folder, train=8, val=4).write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
        model = short(nc=len(names))
        model.names = names
        save(model, folder / "best.pt")

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
        """Let the block do what it says; AssertionError: it fails."""
        self._provide(block.text)
        if block.title:
            (self.folder / block.title).write_text(block.text)
            return
        before = self.world._done.get(block.text)
        if before and "edgeprune build" in block.text:  # the same command on the same files: the same results
            shutil.copytree(before / "runs", self.folder / "runs", dirs_exist_ok=True)
            return
        done = self.world.run(block.text, self.folder, on_drone=block.mark == "drone")
        self.world.check(done, f"{block}\n{block.text}")
        self.world._done[block.text] = self.folder

    def _provide(self, text: str) -> None:
        """What the block names and nobody has made yet."""
        for pattern, make in _THINGS.items():
            if pattern not in self._have and re.search(pattern, text):
                self._have.add(pattern)
                make(self.world, self.folder)

    def run_python(self, found: list[Block]) -> None:
        """The page's Python, as one program: what a block defines the next one has."""
        lines: list[str] = []
        for block in found:
            self._provide(block.text)
            lines += [""] * (block.line - len(lines)) + block.text.splitlines()
        script = self.folder / "page.py"
        script.write_text("\n".join(lines) + "\n")
        self.world.check(self.world.run(f"python {script.name}", self.folder), f"the Python of {found[0].page}")


def _own_data(world: World, folder: Path) -> None:
    shutil.copytree(world.folder / "inputs", folder, dirs_exist_ok=True)


def _demo_weights(world: World, folder: Path) -> None:
    """A detector of the usual size as best.pt: the small one's time is not its channels'."""
    from edgeprune import demo

    shutil.copy(demo.WEIGHTS, folder / "best.pt")


def _results(world: World, folder: Path) -> None:
    for name in _BUILT:
        shutil.copy(world.built / name, folder)


def _bundle(world: World, folder: Path) -> None:
    shutil.copy(world.built / f"{NAME}.epb", folder / "demo.epb")


def _newer(world: World, folder: Path) -> None:
    """A bundle of the same files that counts higher."""
    shutil.copy(world.built / f"{NAME}.epb", folder / ".old.epb")
    (folder / ".newer.py").write_text(_NEWER)
    world.check(world.run("python .newer.py", folder), "a newer bundle")


def _stick(world: World, folder: Path) -> None:
    shutil.copy(world.built / f"{NAME}.epb", folder / "demo.epb")
    world.drone.put(folder / "demo.epb", "/media/stick")


def _deployed(world: World, folder: Path) -> None:
    world.deploy()


def _coco(world: World, folder: Path) -> None:
    """The same pictures with COCO's JSON."""
    from edgeprune import demo

    for split in ("train", "val"):
        pictures = sorted((world.folder / "inputs/images" / split).iterdir())
        shutil.copytree(pictures[0].parent, folder / "coco" / split)
        found: list[dict] = []
        for number, picture in enumerate(pictures):
            for line in (world.folder / "inputs/labels" / split / f"{picture.stem}.txt").read_text().splitlines():
                kind, x, y, w, h = (float(word) * 96 for word in line.split())
                box = {"bbox": [x - w / 2, y - h / 2, w, h], "area": w * h, "iscrowd": 0, "image_id": number}
                found.append({**box, "id": len(found), "category_id": int(kind / 96)})
        images = [{"id": i, "file_name": p.name, "width": 96, "height": 96} for i, p in enumerate(pictures)]
        kinds = [{"id": i, "name": name} for i, name in enumerate(demo.NAMES)]
        text = json.dumps({"images": images, "annotations": found, "categories": kinds})
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


#: What a page names -> what puts it into its folder. Whatever a page makes itself is made anew over it.
_THINGS = {
    r"\bbest\.pt|\bdata\.yaml|\boriginal\.pt": _own_data,
    r"--latency-ratio": _demo_weights,
    r"\b(pruned|tuned)\.pt|\bmodel\.(fp|int)": _results,
    r"(?<![\w/])demo\.epb": _bundle,
    r"\bnewer\.epb": _newer,
    r"/media/stick/": _stick,
    r"/opt/edgeprune/current": _deployed,
    r"\bcoco/": _coco,
    r"\bdrone\.img": _image,
    r"\brootfs\b": _rootfs,
    r"\bbase\.tar": _base,
}
