"""The fenced blocks of a page, and the command lines in them. The module knows nothing of their meaning.

A comment on the line before a fence sets the treatment of the block, with a reason:

    <!-- slow: a whole build -->          parsed in every run, executed with `pytest -m slow`
    <!-- parse: needs a camera -->        its command lines are only parsed
    <!-- drone -->                        executed in a shell on the drone, not on the host

A block with title="mine.py" is a file: it is written before the next block runs.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_MARK = r"(?:^<!-- (slow|parse|drone)(?:: ([^\n]+?))? -->\n)?"
_FENCE = re.compile(_MARK + r"^```([a-z]*)([^\n`]*)\n(.*?)^```$", re.M | re.S)
_END = frozenset({"&&", "||", "|", ";", "&", "(", ")", ";;"})


@dataclass(frozen=True)
class Block:
    """E.g. Block("docs/deploying.md", 12, "sh", "", "parse", "needs a camera", "edgeprune run …\\n")."""

    page: str
    line: int
    language: str
    info: str
    mark: str
    why: str
    text: str

    @property
    def title(self) -> str | None:
        """The name of the file whose content this block is."""
        match = re.search(r'title="([^"]+)"', self.info)
        return match[1] if match else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(path: Path, name: str) -> list[Block]:
    """The blocks of a page, in order."""
    text = path.read_text()
    return [
        Block(name, text.count("\n", 0, m.start(3)) + 1, m[3], m[4].strip(), m[1] or "", m[2] or "", m[5])
        for m in _FENCE.finditer(text)
    ]


def commands(text: str) -> list[list[str]]:
    """Every call of edgeprune in a shell script, also through ssh, as arguments: [["build", "--ratio", "0.2"], …]."""
    calls = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _END:
                words.append(word)
                continue
            at = next((i for i, w in enumerate(words) if w == "edgeprune" or w.endswith("/edgeprune")), None)
            # `sudo edgeprune`, `ssh drone .local/bin/edgeprune`; but not `ls /opt/edgeprune`.
            if at is not None and (at == 0 or re.fullmatch(r"(.*/)?bin/edgeprune|edgeprune", words[at])):
                calls.append(_without_redirections(words[at + 1 :]))
            words = []
    return calls


def spans(path: Path) -> list[str]:
    """The inline `code` in the running text, each once."""
    text = _FENCE.sub("", path.read_text())
    return sorted(set(re.findall(r"(?<!`)`([^`]+)`(?!`)", text)))


def _without_redirections(words: list[str]) -> list[str]:
    at = next((i for i, word in enumerate(words) if word in ("<", ">", ">>")), len(words))
    return words[:at]
