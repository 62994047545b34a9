"""Tests that the device package imports no forbidden module, and that old Pythons can parse it."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import edgeprune_device
import pytest

FOLDER = Path(edgeprune_device.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
FORBIDDEN = ("torch", "torchvision", "ultralytics", "onnx", "edgeprune", "scipy", "matplotlib")
OPTIONAL = ("cuda", "cv2", "onnxruntime", "pycuda", "tensorrt")

CODE = """
import importlib, pkgutil, sys
class Bar:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {barred!r}:
            raise ImportError("barred: " + name)
sys.meta_path.insert(0, Bar())
import edgeprune_device
count = 0
for module in pkgutil.walk_packages(edgeprune_device.__path__, "edgeprune_device."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        count += 1
loaded = set({barred!r}) & set(sys.modules)
assert not loaded, loaded
print(count)
"""


def test_every_module_imports_without_optional_packages():
    code = CODE.format(barred=FORBIDDEN + OPTIONAL)
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 0 and int(done.stdout) == len(FILES) - 2  # excludes the root's __init__ and __main__


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_module_imports_a_forbidden_package(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        assert not {name.split(".")[0] for name in names} & set(FORBIDDEN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_exported_name_is_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or path.name == "__init__.py"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name


def test_onnx_runtime_telemetry_is_disabled():
    code = "import edgeprune_device, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    for given, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        done = subprocess.run([sys.executable, "-c", code], env={**environment, **given}, stdout=subprocess.PIPE)
        assert done.stdout.decode().strip() == expected
