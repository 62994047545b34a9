"""A Comparison as the sections read it: which item is what, and which figures may stand beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgeprune.comparison.page.figures import number

#: Of a build: what flies, the first that there is. The gallery's last item goes before all.
_DELIVERED = ("int8", "int8-fp16", "fp16", "fp32", "qat", "tuned", "pruned")
#: Of a build: where a file's own cost was not counted, it is that of the network it was exported from.
_NETWORKS = ("fp32", "qat", "tuned")
PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16")


@dataclass(frozen=True)
class PageView:
    """The comparison's JSON with a few questions answered."""

    data: dict

    @property
    def items(self) -> list[dict]:
        return self.data.get("items") or []

    @property
    def first(self) -> dict | None:
        """What everything is compared with."""
        return self.items[0] if self.items else None

    @property
    def is_build(self) -> bool:
        return self.data.get("kind") == "build"

    def item(self, name: str | None) -> dict | None:
        return next((item for item in self.items if item["name"] == name), None)

    def index(self, item: dict) -> int:
        return next(i for i, other in enumerate(self.items) if other is item)

    @property
    def delivered(self) -> dict | None:
        """What the summary shows beside the first item; None where there is only one."""
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
        """What a reader may put on a drone: a build's precisions, else every item but the first."""
        others = self.items[1:]
        return [item for item in others if item["name"] in PRECISIONS and not item.get("recorded")] or others

    def network(self, item: dict, key: str) -> tuple[Any, str | None]:
        """(parameters, macs, channels or layers of an item, the name of the item they were counted on if another)."""
        if item.get(key) is not None:
            return item[key], None
        if self.is_build and item["name"] in PRECISIONS and not item.get("recorded"):
            for other in map(self.item, _NETWORKS):
                if other is not None and other.get(key) is not None:
                    return other[key], other["name"]
        return None, None

    @property
    def untrusted(self) -> int:
        """Validation pictures that were trained on, too."""
        return (self.data.get("data") or {}).get("train_in_val") or 0


def p50(item: dict) -> float | None:
    return number((item.get("latency_ms") or {}).get("p50"))


def setting(item: dict) -> tuple | None:
    """Where and how a latency was measured: two latencies may be compared if these are equal. None without one."""
    if p50(item) is None:
        return None
    latency = item["latency_ms"]
    where: Any = "here"
    if item.get("recorded"):
        where = item.get("machine") or ("unknown", item["name"])
    return where, latency.get("runtime"), latency.get("threads")


def same_run(a: dict, b: dict) -> bool:
    return setting(a) is not None and setting(a) == setting(b)


def same_pictures(a: dict, b: dict) -> bool:
    """Whether two accuracies are of the same pictures: both measured in this run. A report's are not known to be."""
    return not a.get("recorded") and not b.get("recorded") and a.get("pictures") == b.get("pictures")


def speedup(first: dict, item: dict) -> float | None:
    """In turns where it was measured so, else the quotient of two medians of the same run; None across machines."""
    if item is first or not same_run(first, item):
        return None
    paired = number(item["latency_ms"].get("speedup"))
    return paired if paired is not None else p50(first) / p50(item)


def settings(items: list[dict]) -> Iterator[tuple[tuple, list[dict]]]:
    """The items that have a latency, by where and how it was measured, in the order of the first of each."""
    found: dict[tuple, list[dict]] = {}
    for item in items:
        if setting(item) is not None:
            found.setdefault(setting(item), []).append(item)
    yield from found.items()


def place(key: tuple) -> str:
    """A setting in words."""
    where, runtime, threads = key
    machine = "this machine" if where == "here" else where if isinstance(where, str) else "a machine that is not stated"
    count = None if threads is None else f"{threads} thread{'s' if threads != 1 else ''}"
    words = [machine, runtime, None if count and count in str(runtime) else count]
    return ", ".join(str(word) for word in words if word)
