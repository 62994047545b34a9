"""The notebooks use only the public API, are committed with their outputs, are small and machine-independent, and run.

`python tests/host/test_notebooks.py [name]` runs both notebooks, or one, and writes them for the commit.
"""

import ast
import hashlib
import json
import re
import sys
import tempfile
from pathlib import Path

import pytest

import edgeprune as ep

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("model-comparison", "pruning-analysis")
# minimum number of figures; the Pareto SVG is one of the first
FIGURES = {"model-comparison": 5, "pruning-analysis": 6}
ALLOWED = {"edgeprune", "numpy", "matplotlib", "IPython", "pathlib"}


def read(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def fingerprint(notebook):
    """The hash of the executed code."""
    return hashlib.sha256("\0".join(source(cell) for cell in code(notebook)).encode()).hexdigest()


def shown(cell):
    """{MIME type: texts} of a cell's outputs."""
    texts = {}
    for output in cell["outputs"]:
        for kind, data in (output.get("data") or {"text/plain": output.get("text", "")}).items():
            texts.setdefault(kind, []).append("".join(data))
    return texts


def figures(notebook):
    kinds = [kind for cell in code(notebook) for kind, texts in shown(cell).items() for _ in texts]
    return kinds.count("image/png") + kinds.count("image/svg+xml")


def execute(name, folder):
    """Run the notebook from top to bottom in `folder`; return it in the committed form."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    for output in (o for cell in code(notebook) for o in cell["outputs"] if "data" in o):
        if len(output["data"]) > 1:  # plain text is an unused fallback beside a table or an image
            output["data"].pop("text/plain", None)
        output["metadata"].pop("needs_background", None)  # the figures are readable on light and dark backgrounds
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "edgeprune": {"executed": fingerprint(notebook)},
    }
    return notebook


def reached(tree):
    """The modules that a program imports, and all names after `ep.`."""
    modules, names = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ep":
            names.add(node.attr)
    return modules, names


def unlisted(text):
    """The names outside of the public API that a program uses."""
    tree = ast.parse(text)
    modules, names = reached(tree)
    used = {m for m in modules if m.partition(".")[0] not in ALLOWED or m.startswith("edgeprune.")}
    used |= {f"ep.{name}" for name in names - set(ep.__all__)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr != "__version__":
            used.add(node.attr)
        if isinstance(node, ast.ImportFrom) and node.module == "edgeprune":
            used |= {a.name for a in node.names} - set(ep.__all__)
        if isinstance(node, ast.Import):
            used |= {f"as {a.asname}" for a in node.names if a.name == "edgeprune" and a.asname != "ep"}
        if isinstance(node, ast.Name) and node.id in ("getattr", "__import__", "importlib", "eval", "exec"):
            used.add(node.id)
    return used


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_use_only_the_public_api(name):
    text = "\n".join(map(source, code(read(name))))
    assert "import edgeprune as ep" in text and not unlisted(text)


@pytest.mark.parametrize(
    "text",
    ["import torch", "import edgeprune.comparison.page", "from edgeprune.comparison.page import svg",
     "from edgeprune.comparison import page", "import edgeprune", "import edgeprune as ep\nep.comparison.compare()",
     "x._html", "getattr(ep, 'x')"],
)  # fmt: skip
def test_use_of_a_private_name_is_detected(text):
    assert unlisted(text)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_committed_with_their_outputs(name):
    notebook = read(name)
    cells = code(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells), "a cell has no output"
    assert not [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    run = notebook["metadata"]["edgeprune"]["executed"]
    assert run == fingerprint(notebook), "changed since the last run: python tests/host/test_notebooks.py"
    assert figures(notebook) >= FIGURES[name]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_contain_no_paths_and_no_noise(name):
    for cell in code(read(name)):
        assert not [o for o in cell["outputs"] if o.get("name") == "stderr"], source(cell)
        texts = [t for kind, outputs in shown(cell).items() if kind != "image/png" for t in outputs]
        for text in texts:
            assert not re.search(r"(?<![\w<.])/(home|root|tmp|work|Users|var)\b", text), text[:200]
            assert "\r" not in text and "\x1b" not in text


def test_the_notebooks_are_small():
    assert sum((FOLDER / f"{name}.ipynb").stat().st_size for name in NAMES) < 1.5e6


def check(name, notebook):
    """Check for the main outputs."""
    cells = code(notebook)
    everything = [text for cell in cells for texts in shown(cell).values() for text in texts]
    assert figures(notebook) >= FIGURES[name]
    wanted = {
        "model-comparison": ("Latency against mAP50-95", "<table", "mAP50-95", "`runs/notebook/comparison.html`"),
        "pruning-analysis": ("recommended: macs=", "| bn_scale |", "| 0.6 |", "thresholds by"),
    }
    for words in wanted[name]:
        assert any(words in text for text in everything), words


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run_from_top_to_bottom(name, tmp_path, monkeypatch):
    """They take two and five minutes on one core. A failing cell raises here with its traceback."""
    pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[notebooks]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[notebooks]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    check(name, execute(name, tmp_path))
    if name == "model-comparison":
        page = (tmp_path / "runs/notebook/comparison.html").read_text()
        assert page.lstrip().lower().startswith("<!doctype html") and "int8" in page


def main(names):
    """Run these notebooks and write them with their outputs."""
    import nbformat

    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(name, folder)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        check(name, notebook)


if __name__ == "__main__":
    main(sys.argv[1:] or NAMES)
