"""A Comparison as the sections read it: the role of each item, and which figures may be compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeprune.comparison.page.figures import number

#: The delivered model of a build: the first of these that exists. The gallery's last item has precedence.
_DELIVERED = ("int8", "int8-fp16", "fp16", "fp32", "qat", "tuned", "pruned")
#: The models of a build whose cost stands for a file whose own cost was not counted.
_NETWORKS = ("fp32", "qat", "tuned")
PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16")


@dataclass(frozen=True)
class PageView:
    """The comparison's JSON, with the questions that several sections ask.

    Attributes:
        data: the JSON.
    """

    data: dict

    @property
    def items(self) -> list[dict]:
        """All items."""
        return self.data.get("items") or []

    @property
    def first(self) -> dict | None:
        """The item that is the reference for the others; None without items."""
        return self.items[0] if self.items else None

    @property
    def is_build(self) -> bool:
        """Whether the comparison is of a build."""
        return self.data.get("kind") == "build"

    def item(self, name: str | None) -> dict | None:
        """The item of this name; None if there is none."""
        return next((item for item in self.items if item["name"] == name), None)

    def index(self, item: dict) -> int:
        """The position of an item."""
        return next(i for i, other in enumerate(self.items) if other is item)

    @property
    def delivered(self) -> dict | None:
        """The item that the summary shows beside the first; None if there is only one."""
        wanted = [(self.data.get("gallery") or {}).get("last"), *(_DELIVERED if self.is_build else ())]
        others = self.items[1:]
        for name in wanted:
            found = next((item for item in others if item["name"] == name), None)
            if found is not None:
                return found
        here = [item for item in others if not item.get("recorded")]
        return (here or others or [None])[-1]

    @property
    def shipped(self) -> list[dict]:
        """The items for a drone: a build's precisions, else every item but the first."""
        others = self.items[1:]
        return [item for item in others if item["name"] in PRECISIONS and not item.get("recorded")] or others

    def network(self, item: dict, key: str) -> tuple[Any, str | None]:
        """The parameters, macs, channels or layers of an item's network.

        Args:
            item: the item.
            key: name of the figure.

        Returns:
            (figure, name of the other item that it was counted on, or None).
        """
        if item.get(key) is not None:
            return item[key], None
        if self.is_build and item["name"] in PRECISIONS and not item.get("recorded"):
            for other in map(self.item, _NETWORKS):
                if other is not None and other.get(key) is not None:
                    return other[key], other["name"]
        return None, None

    @property
    def untrusted(self) -> int:
        """Number of validation images that are training images, too."""
        return (self.data.get("data") or {}).get("train_in_val") or 0


def p50(item: dict) -> float | None:
    """The median latency of an item, ms; None if it was not measured."""
    return number((item.get("latency_ms") or {}).get("p50"))


def setting(item: dict) -> tuple | None:
    """The machine, runtime and threads of a latency; None without a latency.

    Two latencies may be compared if their settings are equal.
    """
    if p50(item) is None:
        return None
    latency = item["latency_ms"]
    where: Any = "here"
    if item.get("recorded"):
        where = item.get("machine") or ("unknown", item["name"])
    return where, latency.get("runtime"), latency.get("threads")


def same_run(a: dict, b: dict) -> bool:
    """Whether the latencies of two items were measured on the same machine, runtime and threads."""
    return setting(a) is not None and setting(a) == setting(b)


def same_pictures(a: dict, b: dict) -> bool:
    """Whether two accuracies are of the same images, which holds only for items measured in this run.

    The images of a report are not known.
    """
    return not a.get("recorded") and not b.get("recorded") and a.get("pictures") == b.get("pictures")


def speedup(first: dict, item: dict) -> float | None:
    """The speedup of an item over the first; None across machines.

    It is the figure measured in turns if there is one, else the quotient of the two medians.
    """
    if item is first or not same_run(first, item):
        return None
    paired = number(item["latency_ms"].get("speedup"))
    return paired if paired is not None else p50(first) / p50(item)


def settings(items: list[dict]) -> Iterator[tuple[tuple, list[dict]]]:
    """Group the items that have a latency by its setting, in the order of the first item of each."""
    found: dict[tuple, list[dict]] = {}
    for item in items:
        if setting(item) is not None:
            found.setdefault(setting(item), []).append(item)
    yield from found.items()


def place(key: tuple) -> str:
    """Describe a setting in words."""
    where, runtime, threads = key
    machine = "this machine" if where == "here" else where if isinstance(where, str) else "a machine that is not stated"
    count = None if threads is None else f"{threads} thread{'s' if threads != 1 else ''}"
    words = [machine, runtime, None if count and count in str(runtime) else count]
    return ", ".join(str(word) for word in words if word)
