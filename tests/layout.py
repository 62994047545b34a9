"""Measures the layout of both packages from their syntax trees, including lazy imports and imports for annotations.

    python -m tests.layout

prints for each package: its rooms (folders, and the modules of its root) by level, the upward imports, the circles
between modules and between rooms, and the modules in the root. `python -m tests.layout map` prints the map in
CONTRIBUTING.md, which is made from the folders' docstrings. tests/test_layout.py enforces `ORDER`.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"edgeprune": ROOT / "edgeprune", "edgeprune_device": ROOT / "device" / "edgeprune_device"}
#: Rooms from low to high: a room imports only from rooms before it. Modules of the root are listed by name.
ORDER = {
    "edgeprune": (
        "versions", "cache", "workers", "options", "console", "tasks", "data", "model", "quantize", "measuring",
        "exporting", "pruning", "training", "analysis", "demo", "drones", "comparison", "workflow", "api", "",
        "commands", "doctor", "__main__",
    ),
    "edgeprune_device": (
        "", "agent", "errors", "clock", "printable", "terminal", "interpreter", "hint", "plugins", "option", "options",
        "size", "deadline", "pipeline", "table", "files", "strict_json", "onnx_file", "progress", "layouts", "output",
        "schema", "target", "cuda", "probes", "trust", "vision", "machine", "engine", "reports", "sources", "runtimes",
        "benchmark", "releases", "service", "installation", "doctor", "commands", "cli", "__main__",
    ),
}  # fmt: skip


def modules(package: str) -> dict[str, Path]:
    """{dotted name: file} of every module of a package."""
    base = PACKAGES[package]
    paths = {}
    for path in sorted(base.rglob("*.py")):
        parts = [package, *path.relative_to(base).with_suffix("").parts]
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imports(package: str) -> dict[str, set[str]]:
    """{module: modules of the same package that it imports}, including imports in functions."""
    known = modules(package)
    return {name: set(_imported(path, package, known)) - {name} for name, path in known.items()}


def _imported(path: Path, package: str, known: dict[str, Path]) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # relative
                folders = [package, *path.relative_to(PACKAGES[package]).parts[:-1]]
                source = ".".join([*folders[: len(folders) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names if source.split(".")[0] == package else ():
                whole = f"{source}.{alias.name}"
                yield whole if whole in known else source


def room(module: str) -> str:
    """The folder of a module below the package, or its own name in the root: `edgeprune.data.samples` is in `data`,
    `edgeprune.cache` is `cache`, the package itself is ``."""
    return module.split(".")[1] if "." in module else ""


def arrows(package: str) -> dict[str, set[str]]:
    """{room: rooms that it imports from}."""
    graph: dict[str, set[str]] = defaultdict(set)
    for module, targets in imports(package).items():
        graph[room(module)] |= {room(target) for target in targets} - {room(module)}
    return dict(graph)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected sets of more than one node, each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                cycles.append(sorted(stack[at:]))
            del stack[at:]

    for node in graph:
        if node not in index:
            visit(node)
    return cycles


def levels(graph: dict[str, set[str]]) -> dict[str, int]:
    """{room: 1 + the highest level of its imports}; CycleError if rooms form a circle."""
    by_node: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        by_node[node] = 1 + max((by_node[target] for target in graph.get(node, ())), default=0)
    return by_node


def upwards(package: str) -> list[str]:
    """Imports against `ORDER`, as `module -> module`. Imports of a room that is missing in `ORDER` always count."""
    place = {name: i for i, name in enumerate(ORDER[package])}
    upward = []
    for module, targets in imports(package).items():
        for target in targets:
            here, there = room(module), room(target)
            if here != there and there not in ORDER[package][: place.get(here, 0)]:
                upward.append(f"{module} -> {target}")
    return sorted(upward)


def without_a_test_file(package: str) -> list[str]:
    """Modules, as `folder/module.py`, without a test file of the same name in the mirrored folder."""
    side = ROOT / "tests" / {"edgeprune": "host", "edgeprune_device": "device"}[package]
    base = PACKAGES[package]
    paths = [path.relative_to(base) for path in sorted(base.rglob("*.py")) if not path.stem.startswith("_")]
    return [path.as_posix() for path in paths if not (side / path.parent / f"test_{path.stem}.py").exists()]


def report(package: str) -> str:
    """The whole report as text."""
    graph = arrows(package)
    lines = [f"{package}: {len(graph)} rooms, {len(modules(package))} modules"]
    try:
        by_level = defaultdict(list)
        for name, level in levels(graph).items():
            by_level[level].append(name or "(package)")
        lines += [f"  level {level:2}  {' '.join(sorted(names))}" for level, names in sorted(by_level.items())]
    except CycleError:
        lines.append("  rooms form a circle")
    for title, texts in (
        ("circles of rooms", [" ".join(names) for names in circles(graph)]),
        ("circles of modules", [" ".join(names) for names in circles(imports(package))]),
        ("upward imports", upwards(package)),
        ("modules in the root", _root_modules(package)),
        ("modules without a test file of their name", without_a_test_file(package)),
    ):
        lines.append(f"  {title}: {len(texts)}" + "".join(f"\n    {text}" for text in texts))
    return "\n".join(lines)


def map_of(package: str) -> str:
    """The folders of a package from high to low, each with the first sentence of its docstring and its modules,
    followed by the modules of the root.
    """
    base, lines = PACKAGES[package], [f"{PACKAGES[package].relative_to(ROOT)}/"]
    for name in reversed(ORDER[package]):
        folder = base / name
        if name and folder.is_dir():
            lines += textwrap.wrap(f"{name + '/':14} {_first_sentence(folder / '__init__.py')}", 118, **_INDENT)
            inside = sorted(p.stem if p.is_file() else f"{p.name}/" for p in folder.iterdir() if _shown(p))
            lines += textwrap.wrap(" ".join(inside), 118, initial_indent=" " * 17, subsequent_indent=" " * 17)
    lines += textwrap.wrap(" ".join(["(root)        ", *sorted(_root_modules(package))]), 118, **_INDENT)
    return "\n".join(lines)


_INDENT = {"initial_indent": "  ", "subsequent_indent": " " * 17}


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _shown(path: Path) -> bool:
    if path.is_dir():
        return (path / "__init__.py").exists()
    return path.suffix == ".py" and not path.stem.startswith("_")


def _root_modules(package: str) -> list[str]:
    return [name.split(".")[1] for name in modules(package) if name.count(".") == 1 and _is_module(name, package)]


def _is_module(name: str, package: str) -> bool:
    return modules(package)[name].name != "__init__.py"


if __name__ == "__main__":
    for name in PACKAGES:
        print(map_of(name) if sys.argv[1:] == ["map"] else report(name))
