"""Finds the words and sentence patterns that CONTRIBUTING's "Plain English" bans, in all texts for readers.

    python -m tests.language            lists every finding
    python -m tests.language --shrink   shortens the list of tolerated findings; it never grows

A finding is (file, rule, sentence). The check reads the Markdown pages without their code, and all strings of four
words or more in both packages: docstrings, messages and help texts.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TOLERATED = Path(__file__).with_name("language_tolerated.json")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "device/README.md", "docs/*.md")
CODE = ("edgeprune/**/*.py", "device/edgeprune_device/**/*.py")

_VERBS = "said|told|found|asked|measured|made|done|removed|left|seen|wanted|written|kept|built|known|missing|there"
#: {rule: (pattern of a sentence, how to write it instead)}
RULES = {
    "subject": (
        r"^(What|Whatever|Who|Whoever|Whom)\b(?!.*\?)",
        "name the thing: a sentence does not begin with What, Who or Whoever as its subject",
    ),
    "participle": (
        rf"\b(what|whatever) (was|were|is|are|has been|have been|it) (not )?({_VERBS})\b",
        "name the thing; a participle is no noun",
    ),
    "said": (r"\b(it|that|this) (is|was) (said|told)\b|\bis said so\b", "say who prints it: `the command prints …`"),
    "nobody": (r"\b(no|some|any)body('s)?\b|\bwhoever\b", "name the program, the user or the device"),
    "another": (r"--[\w-]+ is another\b", "`--option changed`"),
    "content": (r"\b(is|are) (not )?content\b", "say what the program reported"),
    "rescue": (r"\brescu(e|es|ed|ing)\b", "layer fallback: `kept in FP16`"),
    "disagreement": (r"\bdisagreements?\b", "output divergence"),
    "lossy": (r"\bTooLossy\b", "AccuracyDrop"),
    "as it should": (r"\bas it should\b|\bword of\b", "give the field, the value found and the value expected"),
    "faster ratio": (r"\d(\.\d+)?x faster\b", "`as fast` for a ratio"),
    "cut": (r"\buncut\b(?!:)|\b(largest|smallest|larger|smaller|deep) cuts?\b", "unpruned; budget; pruning ratio"),
    "qat": (r"\bINT8-aware\b", "quantization-aware training (QAT)"),
    "refit": (r"\bre-solv", "refit by least squares"),
    "hold out": (r"\b(hold|holds|held|holding)[- ]back\b", "hold out, held-out"),
    "alternately": (r"\bin turns\b", "measured alternately"),
}  # fmt: skip
_PATTERNS = {name: re.compile(pattern, re.I if name != "subject" else 0) for name, (pattern, _) in RULES.items()}


class Finding(NamedTuple):
    file: str
    rule: str
    sentence: str


def findings(root: Path = ROOT) -> list[Finding]:
    """All findings, in the order of the files."""
    hits = []
    for pattern in (*PAGES, *CODE):
        for path in sorted(root.glob(pattern)):
            texts = _prose(path.read_text()) if path.suffix == ".md" else _strings(path.read_text())
            hits += [Finding(path.relative_to(root).as_posix(), *hit) for text in texts for hit in check(text)]
    return hits


def check(text: str) -> Iterator[tuple[str, str]]:
    """(rule, sentence) of every finding in a text."""
    for sentence in re.split(r"(?<=[.!?;:])\s+|\n\s*\n|\s\|\s", text):
        plain = re.sub(r"^([-*>#|]+ )+", "", " ".join(sentence.split()))
        for name, pattern in _PATTERNS.items():
            if pattern.search(plain):
                yield name, plain


def _prose(page: str) -> Iterator[str]:
    """A page's paragraphs, without code blocks, inline code and link targets."""
    without = re.sub(r"^```.*?^```$|^~~~.*?^~~~$", "", page, flags=re.M | re.S)
    without = re.sub(r"`[^`\n]*`", "code", re.sub(r"\]\([^)]*\)", "]", without))
    yield from re.split(r"\n\s*\n|\n(?=[-*|#] ?)", without)


def _strings(source: str) -> Iterator[str]:
    """Strings of prose; `x` replaces the values in an f-string."""
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        else:
            continue
        if len(text.split()) >= 4:
            yield text


def counted(hits: list[Finding]) -> dict[str, dict[str, int]]:
    """{file: {rule: number of findings}}."""
    counts: dict[str, Counter] = {}
    for finding in hits:
        counts.setdefault(finding.file, Counter())[finding.rule] += 1
    return {file: dict(sorted(rules.items())) for file, rules in sorted(counts.items())}


def tolerated() -> dict[str, dict[str, int]]:
    """{file: {rule: number of tolerated findings}}."""
    return json.loads(TOLERATED.read_text())


def main() -> None:
    hits = findings()
    if sys.argv[1:] == ["--shrink"]:
        before = tolerated() if TOLERATED.exists() else None
        now = counted(hits)
        if before is not None:
            grown = [
                f"{file}: {rule}"
                for file, rules in now.items()
                for rule, count in rules.items()
                if count > before.get(file, {}).get(rule, 0)
            ]
            if grown:
                sys.exit("the list may only shrink; rewrite the new findings in " + ", ".join(grown))
        TOLERATED.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    else:
        for file, rule, sentence in hits:
            print(f"{file}: {rule}: {sentence[:160]}")
    print(f"{len(hits)} findings in {len({f.file for f in hits})} files")


if __name__ == "__main__":
    main()
