"""A folder with a module for every name that a program may import; each leaves a mark when it runs."""

import os
import sys
from pathlib import Path

PACKAGES = (
    "PIL", "_cffi_backend", "cffi", "cloudpickle", "coloredlogs", "cpuinfo", "cuda", "cv2", "edgeprune",
    "edgeprune_device", "flatbuffers", "google", "humanfriendly", "jinja2", "matplotlib", "mlflow", "mpmath", "nacl",
    "networkx", "numpy", "onnx", "onnxruntime", "onnxsim", "packaging", "pandas", "pi_heif", "pip", "pkg_resources",
    "polars", "psutil", "pycuda", "pynvml", "requests", "scipy", "seaborn", "setuptools", "six", "sympy", "tensorboard",
    "tensorrt", "tensorrt_rtx", "thop", "torch", "torchvision", "tqdm", "triton", "typing_extensions", "ultralytics",
    "ultralytics_thop", "urllib3", "wandb", "wheel", "yaml",
)  # fmt: skip


class Traps:
    """The folder `path`, and the marks of its modules. `modules`: names of the standard library, by default all."""

    def __init__(self, path: Path, modules=None):
        self.path = path / "traps"
        self.path.mkdir()
        self._marks = path / "marks.txt"
        for name in sorted({*standard(), "sitecustomize", "usercustomize"} if modules is None else modules):
            (self.path / f"{name}.py").write_text(self._code(name))
        for name in PACKAGES:
            (self.path / name).mkdir()
            for file in ("__init__", "__main__"):
                (self.path / name / f"{file}.py").write_text(self._code(f"{name}.{file}"))

    def _code(self, name):
        return f"with open({str(self._marks)!r}, 'a') as marks:\n    marks.write({name!r} + ' ')\n"

    def marks(self):
        """The names of the modules that ran."""
        return self._marks.read_text().split() if self._marks.exists() else []


def standard():
    """The names of the standard library's modules."""
    folder = Path(os.__file__).parent  # Python 3.10 has a list of them
    files = [*folder.iterdir(), *(folder / "lib-dynload").iterdir()]
    files = [file for file in files if file.suffix in (".py", ".so") or (file / "__init__.py").exists()]
    names = {file.name.split(".")[0] for file in files}
    return {name for name in names if name.isidentifier()} - set(sys.builtin_module_names)
