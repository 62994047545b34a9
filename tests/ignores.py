"""Counts the ignore comments for mypy and ruff: python -m tests.ignores

Each `type: ignore` needs a code and a reason: `# type: ignore[attr-defined]  # torch's stubs lack it`.
"""

from __future__ import annotations

import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("edgeprune", "device/edgeprune_device")
_IGNORE = re.compile(r"#\s*type:\s*ignore\b(?P<codes>\[[a-z, -]+\])?(?P<reason>\s*#\s*\S.{5,})?")


def ignores() -> Iterator[tuple[str, str, bool]]:
    """Yield (place, codes, whether it has a code and a reason) for every `type: ignore` in the packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            with open(path, "rb") as stream:
                for token in tokenize.tokenize(stream.readline):
                    match = _IGNORE.match(token.string) if token.type == tokenize.COMMENT else None
                    if match:
                        place = f"{path.relative_to(ROOT)}:{token.start[0]}"
                        yield place, match["codes"] or "", bool(match["codes"] and match["reason"])


def main() -> int:
    """Print the number of ignores by code, and each one without a code or a reason; the exit code is their number."""
    entries = list(ignores())
    codes = Counter(code.strip() for _, text, _ in entries for code in text.strip("[]").split(","))
    print(f"{len(entries)} ignores of mypy:", ", ".join(f"{code} {count}" for code, count in codes.most_common()))
    bare = [place for place, _, whole in entries if not whole]
    for place in bare:
        print(f"{place}: `type: ignore` without a code or a reason; write `# type: ignore[code]  # reason`")
    return min(len(bare), 1)


if __name__ == "__main__":
    sys.exit(main())
