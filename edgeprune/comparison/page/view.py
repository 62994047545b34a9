"""A comparison as the sections see it: the role of each item, and which figures may be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgeprune_device.options import PRECISIONS

from edgeprune.comparison.facts import Facts
from edgeprune.comparison.page.figures import number
from edgeprune.comparison.row import Row

#: The delivered model of a build: the first of these that exists. The gallery's last item has precedence.
_DELIVERED = ("int8", "int8-fp16", "fp16", "fp32", "qat", "tuned", "pruned")
#: The models of a build that give the cost of a file whose own cost was not counted.
_NETWORKS = ("fp32", "qat", "tuned")


class Setting(NamedTuple):
    """The conditions of a latency. Two latencies may be compared if their settings are equal.

    Attributes:
        machine: "here", or the machine of a recorded run, or ("unknown", name of the item).
        runtime: the runtime, as text.
        threads: number of inference threads.
    """

    machine: str | tuple[str, str]
    runtime: str
    threads: int | None


@dataclass(frozen=True)
class PageView:
    """The facts of a comparison, with the queries that several sections share.

    Attributes:
        facts: the facts.
    """

    facts: Facts

    @property
    def items(self) -> tuple[Row, ...]:
        """All items."""
        return self.facts.items

    @property
    def first(self) -> Row:
        """The item that is the reference for the others; it exists if there are items."""
        return self.items[0]

    @property
    def is_build(self) -> bool:
        """Whether the comparison belongs to a build."""
        return self.facts.kind == "build"

    @property
    def title(self) -> str:
        """The heading of the page."""
        return self.facts.title or "Comparison"

    def item(self, name: str | None) -> Row | None:
        """The item of this name; None if there is none."""
        return next((item for item in self.items if item.name == name), None)

    def index(self, item: Row) -> int:
        """The position of an item."""
        return next(i for i, other in enumerate(self.items) if other is item)

    @property
    def delivered(self) -> Row | None:
        """The item that the summary shows beside the first; None if there is only one."""
        gallery = self.facts.gallery
        wanted = (gallery["last"] if gallery else None, *(_DELIVERED if self.is_build else ()))
        others = self.items[1:]
        for name in wanted:
            chosen = next((item for item in others if item.name == name), None)
            if chosen is not None:
                return chosen
        candidates = [item for item in others if not item.recorded] or others
        return candidates[-1] if candidates else None

    @property
    def shipped(self) -> Sequence[Row]:
        """The items for a drone: a build's precisions, or all items except the first."""
        others = self.items[1:]
        return [item for item in others if item.name in PRECISIONS and not item.recorded] or others

    def network(self, item: Row, figure: Callable[[Row], int | None]) -> tuple[int | None, str | None]:
        """A figure of an item's network.

        Args:
            item: the item.
            figure: reads the figure from a row.

        Returns:
            (figure, name of the other item that it was counted on, or None).
        """
        if figure(item) is not None:
            return figure(item), None
        if self.is_build and item.name in PRECISIONS and not item.recorded:
            for other in map(self.item, _NETWORKS):
                if other is not None and figure(other) is not None:
                    return figure(other), other.name
        return None, None

    @property
    def untrusted(self) -> int:
        """Number of validation images that are also training images."""
        return self.facts.data["train_in_val"] if self.facts.data else 0


def p50(item: Row) -> float | None:
    """The median latency of an item, ms; None if it was not measured."""
    return number(item.latency_ms["p50"]) if item.latency_ms else None


def setting(item: Row) -> Setting | None:
    """The conditions of an item's latency; None without a latency."""
    if item.latency_ms is None or p50(item) is None:
        return None
    machine = (item.machine or ("unknown", item.name)) if item.recorded else "here"
    return Setting(machine, item.latency_ms["runtime"], item.latency_ms["threads"])


def same_run(a: Row, b: Row) -> bool:
    """Whether the latencies of two items were measured on the same machine, runtime and threads."""
    return setting(a) is not None and setting(a) == setting(b)


def same_pictures(a: Row, b: Row) -> bool:
    """Whether two accuracies were measured on the same images, which is known only for items of this run.

    The images of a report are unknown.
    """
    return not a.recorded and not b.recorded and a.pictures == b.pictures


def speedup(first: Row, item: Row) -> float | None:
    """The speedup of an item over the first; None across machines.

    It is the figure that was measured alternately, or without one the quotient of the two medians.
    """
    before, after = p50(first), p50(item)
    if item is first or before is None or after is None or not same_run(first, item):
        return None
    paired = number(item.latency_ms["speedup"]) if item.latency_ms else None
    return paired if paired is not None else before / after


def settings(items: Sequence[Row]) -> Iterator[tuple[Setting, list[Row]]]:
    """Group the items that have a latency by setting, in the order of the first item of each."""
    groups: dict[Setting, list[Row]] = {}
    for item in items:
        where = setting(item)
        if where is not None:
            groups.setdefault(where, []).append(item)
    yield from groups.items()


def place(where: Setting) -> str:
    """Describe a setting in words."""
    machine = where.machine if isinstance(where.machine, str) else "an unknown machine"
    if where.machine == "here":
        machine = "this machine"
    count = None if where.threads is None else f"{where.threads} thread{'s' if where.threads != 1 else ''}"
    words = (machine, where.runtime, None if count and count in where.runtime else count)
    return ", ".join(word for word in words if word)
