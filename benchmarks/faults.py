"""Plants faults in the code, one at a time, and counts how many of them the tests detect.

    python -m benchmarks.faults draw --seed 16 --out benchmarks/results/faults.json
    python -m benchmarks.faults run benchmarks/results/faults.json --tree ../clone --name before

A fault replaces one operator or number on one line with a similar one: `<` with `<=`, `+` with `-`, `and` with `or`,
`2` with `3`. `draw` selects them at random from both packages, only inside functions and not in the demo's scenes.
`run` applies each fault to a clean clone and runs the tests that name the module, its own test file first, until one
fails. These are not all tests, so a fault that only a distant test would detect counts as missed. `run` adds a column
to the file, so that the same faults can be tried before and after a change of the tests.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("edgeprune", "device/edgeprune_device")
LEFT_OUT = ("demo/", "schema/", "targets/")
LIMIT_S = 150
WORKERS = 2  # pytest-xdist's
_SWAPS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip


def draw(root: Path, seed: int, count: int) -> list[dict]:
    """`count` faults in as many files: [{file, function, line, occurrence, before, after, tried}], lines stripped."""
    files = [p for package in PACKAGES for p in sorted((root / package).rglob("*.py"))]
    files = [p for p in files if not any(part in p.as_posix() for part in LEFT_OUT)]
    rng = random.Random(seed)
    rng.shuffle(files)
    faults = []
    for path in files:
        options = _options(path.read_text())
        if options:
            faults.append({"file": path.relative_to(root).as_posix(), **rng.choice(options), "tried": {}})
        if len(faults) == count:
            break
    return faults


def _options(source: str) -> list[dict]:
    lines, options = source.splitlines(), []
    for function in (n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))):
        for node in ast.walk(function):
            for line, before, after in _changes(node, lines):
                text = lines[line - 1].strip()
                occurrence = sum(other.strip() == text for other in lines[: line - 1])
                options.append(
                    {
                        "function": function.name,
                        "line": text,
                        "occurrence": occurrence,
                        "before": before,
                        "after": after,
                    }
                )
    return options


def _changes(node: ast.AST, lines: list[str]):
    """(line, text before, text after) of each change of this node that occurs exactly once on one line."""
    if isinstance(node, ast.Constant) and type(node.value) is int and node.lineno == node.end_lineno:
        segment = lines[node.lineno - 1]
        word = segment[node.col_offset : node.end_col_offset]
        if word.isdigit() and len(re.findall(rf"\b{word}\b", segment)) == 1:
            yield node.lineno, word, str(node.value + 1)
    operators = (
        node.ops if isinstance(node, ast.Compare) else [node.op] if isinstance(node, (ast.BinOp, ast.BoolOp)) else []
    )
    for operator in operators:
        before, after = _SWAPS.get(type(operator), ("", ""))
        text = lines[node.lineno - 1]
        if before and node.lineno == node.end_lineno and text.count(f" {before} ") == 1 and "#" not in text:
            yield node.lineno, f" {before} ", f" {after} "


def place(root: Path, fault: dict) -> Path:
    """Find the file of a fault. If the code was moved, this is the file of its package with the function and the line.

    Raises:
        LookupError: no file, or more than one, has the function and the line.
    """
    package = next(p for p in PACKAGES if fault["file"].startswith(f"{p}/"))
    before = root / fault["file"]
    for paths in ([before] if before.exists() else [], sorted((root / package).rglob("*.py"))):
        matching = [path for path in paths if _has(path.read_text(), fault)]
        if len(matching) == 1:
            return matching[0]
    raise LookupError(f"{fault['file']}: the line no longer exists: {fault['line']}")


def _has(source: str, fault: dict) -> bool:
    lines = [line.strip() for line in source.splitlines()]
    return f"def {fault['function']}(" in source and lines.count(fault["line"]) > fault["occurrence"]


def plant(root: Path, fault: dict) -> None:
    """Write the fault into its file. Raise LookupError if its line no longer exists."""
    path = place(root, fault)
    lines = path.read_text().splitlines(keepends=True)
    at = [i for i, line in enumerate(lines) if line.strip() == fault["line"]][fault["occurrence"]]
    before, after = fault["before"], fault["after"]
    pattern = rf"\b{before}\b" if before.isdigit() else re.escape(before)
    lines[at] = re.sub(pattern, after, lines[at], count=1)
    path.write_text("".join(lines))


def tests_of(root: Path, file: str) -> list[str]:
    """The test files that import the module or have its name, its own first; else those of its folder; else all of its
    package."""
    path = Path(file)
    side = "tests/device" if file.startswith("device/") else "tests/host"
    files = sorted((root / "tests").rglob("test_*.py"))
    for name in [path.stem] * (path.stem != "__init__") + [path.parent.name]:
        word = re.compile(rf"^\s*(from|import) .*\b{name}\b", re.M)
        named = [p for p in files if side in p.as_posix() and (name in p.stem or p.parent.name == name)]
        near = [p for p in files if p not in named and word.search(p.read_text())]
        if (named or near) and name not in ("edgeprune", "edgeprune_device"):
            return [p.relative_to(root).as_posix() for p in named + near]
    return [side]


def run(root: Path, faults: list[dict], name: str, python: str, save) -> None:
    """Record in `tried` of each fault, as `name`: {caught, by, seconds}, or why it could not be planted."""
    broken: list[str] = []  # tests that also fail without a fault, and therefore detect nothing
    for fault in faults:
        if name in fault["tried"]:
            continue
        begun = time.monotonic()
        try:
            caught = _caught(root, fault, python, broken)
            outcome = {"caught": caught is not None, "by": caught, "seconds": round(time.monotonic() - begun)}
        except LookupError as error:
            outcome = {"caught": None, "by": None, "why": str(error)}
        fault["tried"][name] = outcome
        save(faults)  # an interrupted run continues with the next fault
        print(f"{fault['file']}: {fault['line']} |{fault['before']}->{fault['after']}| {outcome}", flush=True)
    print("tests that fail without a fault:", *broken)


def _caught(root: Path, fault: dict, python: str, broken: list[str]) -> str | None:
    """The first test that fails with the fault and passes without it; None if there is none within the time limit."""
    while True:
        tests = tests_of(root, place(root, fault).relative_to(root).as_posix())
        plant(root, fault)
        try:
            failed = _failing(root, tests, python, broken)
        finally:
            subprocess.run(["git", "checkout", "-q", "--", "."], cwd=root, check=True)
        if failed is None or _failing(root, [failed], python, broken) is None:
            return failed
        broken.append(failed)


def _failing(root: Path, tests: list[str], python: str, broken: list[str], workers: int = WORKERS) -> str | None:
    """The first of these tests that fails or cannot be collected; None if all pass, or at the time limit."""
    command = [python, "-m", "pytest", "-x", "-q", "-rfE", "-n", str(workers), "-p", "no:cacheprovider", *tests]
    command += [f"--deselect={test}" for test in broken]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=LIMIT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return None
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.M)
    return failed[0] if failed else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("--seed", type=int, required=True)
    drawing.add_argument("--count", type=int, default=20)
    drawing.add_argument("--out", type=Path, required=True)
    running = commands.add_parser("run")
    running.add_argument("faults", type=Path)
    running.add_argument("--tree", type=Path, required=True, help="a clean clone; its changes are discarded")
    running.add_argument("--name", required=True, help="the column: before, after")
    running.add_argument("--python", default=sys.executable, help="a Python with that clone installed")
    args = parser.parse_args()
    if args.command == "draw":
        args.out.write_text(json.dumps(draw(Path("."), args.seed, args.count), indent=1) + "\n")
        return
    faults = json.loads(args.faults.read_text())

    def save(tried: list[dict]) -> None:
        args.faults.write_text(json.dumps(tried, indent=1) + "\n")

    run(args.tree.resolve(), faults, args.name, args.python, save)
    caught = [fault["tried"][args.name]["caught"] for fault in faults]
    print(f"{sum(map(bool, caught))} of {len(caught)} caught")


if __name__ == "__main__":
    main()
