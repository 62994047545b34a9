"""The gallery: the same images with each model's detections, side by side; those with the most lost objects
come first.

Each image is embedded once; every panel refers to it and draws its own boxes on top. A labelled object is lost if the
first item finds it and the panel's item does not; its box is dashed and struck through. The losses of the last item
have the numbers of the list beside the panels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from edgeprune_device.vision.task import Task

from edgeprune.comparison.gallery import Box, Gallery, GalleryEntry, boxes_of, match, task_of
from edgeprune.comparison.page import jpegs, parts
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.svg import px
from edgeprune.comparison.page.view import PageView

_TRUTH = "truth"
_STEPS = ("pruned", "tuned")  # intermediate models of a build
_PANELS = 6  # the reader can select further panels
_LISTED = 12


@dataclass(frozen=True)
class _Seen:
    """The detections of one item in one image.

    Attributes:
        by_object: {index of an object: the detection that finds it}.
        alarms: false alarms.
    """

    by_object: dict[int, Box]
    alarms: list[Box]

    @property
    def objects(self) -> set[int]:
        """The indices of the found objects."""
        return set(self.by_object)


@dataclass(frozen=True)
class _Shot:
    """One image: its labels, and each item's detections at the gallery's confidence.

    Attributes:
        index: its place in the gallery.
        entry: the image.
        seen: {item: its detections}.
        task: the task of the boxes.
    """

    index: int
    entry: GalleryEntry
    seen: dict[str, _Seen]
    task: Task

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), px."""
        return self.entry["width"], self.entry["height"]


def section(view: PageView, budget: int) -> Markup:
    """Render the section within a limit of size.

    Images that do not fit are left out, starting with the fewest lost objects.

    Args:
        view: the comparison.
        budget: limit of the section's size, bytes.
    """
    gallery = view.facts.gallery
    if not gallery or not gallery["pictures"]:
        return parts.quiet("No images: the comparison has no data set, or only reports.")
    first, last = gallery["first"], gallery["last"]
    task = task_of(gallery)
    shots = [_shot(i, entry, gallery["conf"], gallery["iou"], task) for i, entry in enumerate(gallery["pictures"])]
    panels = _panels(view, shots, first)
    pictures = [jpegs.read(shot.entry["path"]) for shot in shots]
    heads = [_head(shot, picture) for shot, picture in zip(shots, pictures)]
    bodies = [_body(view, shot, picture, panels, first, last) for shot, picture in zip(shots, pictures)]
    lead = _lead(gallery, panels)
    around = [len(head.encode()) + len(body.encode()) + 300 for head, body in zip(heads, bodies)]
    urls, side = jpegs.fit(pictures, around, budget - len(lead.encode()) - 1000)
    cards = [
        tag("article", head, _embedded(shot, url), body, class_="shot", aria_labelledby=f"picture-{shot.index}")
        for shot, url, head, body in zip(shots, urls, heads, bodies)
    ]
    left_out = len(shots) - len(cards)
    words = None
    if left_out:
        more = f"{left_out} more image{'s are' if left_out != 1 else ' is'} left out"
        words = parts.quiet(more, " to keep this page small; they have the fewest lost objects.")
    scaled = parts.quiet(f"Images are scaled to at most {side} px; the boxes are scaled with them.")
    return tag("div", lead, cards, words, scaled if any(urls) else None, class_="gallery")


def _shot(index: int, entry: GalleryEntry, conf: float, iou: float, task: Task) -> _Shot:
    seen = {}
    for name, boxes in entry["found"].items():
        sure = [box for box in boxes if box[1] >= conf]
        matched = match(entry["truth"], sure, iou, task=task)
        by_object = {object_: box for box, object_ in zip(sure, matched) if object_ is not None}
        alarms = [box for box, object_ in zip(sure, matched) if object_ is None]
        seen[name] = _Seen(by_object, alarms)
    return _Shot(index, entry, seen, task)


def _panels(view: PageView, shots: list[_Shot], first: str) -> list[str]:
    """The names of the panels: the first item, then the others in their order."""
    known = {name for shot in shots for name in shot.seen}
    return [first, *(item.name for item in view.items if item.name in known and item.name != first)]


def _lead(gallery: Gallery, items: list[str]) -> Markup:
    first, last = gallery["first"], gallery["last"]
    shown = [_TRUTH, *items]
    if len(shown) > _PANELS:
        shown = [_TRUTH, first, *(name for name in items if name in _STEPS), last]
    choices = [
        tag("label", tag("input", type="checkbox", checked=name in shown, id=f"show-{i}"), " ", name)
        for i, name in enumerate([_TRUTH, *items])
    ]
    signs = [
        (_sign("truth"), "labelled"),
        (_sign("found"), "labelled and found"),
        (_sign("lost"), f"lost: found by {first}, not by this model"),
        (_sign("gained"), f"gained: not found by {first}"),
        (_sign("alarm"), "found, but not labelled"),
    ]
    return join(
        tag("p", "The images in which ", tag("b", last), " loses the most objects against ", tag("b", first),
            " come first. Confidence of detections: ",
            f"at least {gallery['conf']:g}; a detection finds an object of its class at an IoU of {gallery['iou']:g}."),
        parts.legend(signs),
        tag("fieldset", tag("legend", "Show"), choices, class_="choices"),
    )  # fmt: skip


def _sign(kind: str) -> Markup:
    box = tag(
        "g", tag("rect", x=4, y=3, width=16, height=12), _mark(_Outline(4, 3, 20, 15, None), kind), class_=f"b {kind}"
    )
    ground = tag("rect", width=24, height=18, rx=2, class_="dusk")
    return tag("svg", ground, box, width=24, height=18, aria_hidden="true")


def _head(shot: _Shot, picture: jpegs.GalleryImage) -> Markup:
    lost, gained = shot.entry["lost"], shot.entry["gained"]
    return join(
        tag("h3", shot.entry["name"], id=f"picture-{shot.index}"),
        tag(
            "p", tag("b", f"{lost} lost", class_="bad" if lost else None), ", ",
            tag("b", f"{gained} gained", class_="good" if gained else None),
            f"; {len(shot.entry['truth'])} labelled.", _trouble(shot, picture), class_="count",
        ),
    )  # fmt: skip


def _trouble(shot: _Shot, picture: jpegs.GalleryImage) -> Markup | None:
    words = None
    if picture.error:
        words = f" The image cannot be shown: {picture.error}. Only its boxes are drawn."
    elif picture.size != shot.size:
        now, before = (f"{width} × {height}" for width, height in (picture.size, shot.size))
        words = f" The file has changed (found {now} px, expected {before} px)."
    return tag("span", words, class_="warn") if words else None


def _embedded(shot: _Shot, url: str | None) -> Markup | None:
    """The pixels of an image, embedded once; the panels refer to them."""
    if url is None:
        return None
    width, height = shot.size
    image = tag("image", href=Markup(url), width=px(width), height=px(height), preserveAspectRatio="none",
                id=f"pixels-{shot.index}")  # fmt: skip
    return tag("svg", tag("defs", image), width=0, height=0, class_="pixels", aria_hidden="true")


def _body(view: PageView, shot: _Shot, picture: jpegs.GalleryImage, items: list[str], first: str, last: str) -> Markup:
    objects, there = shot.entry["truth"], picture.pixels is not None
    labelled = _layer(view, shot, objects, "truth", f"b{shot.index}-0")
    truth = _figure(shot, 0, _TRUTH, f"{len(objects)} labelled", [labelled], there)
    numbers = {object_: i for i, object_ in enumerate(_lost(shot, first, last), 1)}
    seen = [_panel(view, shot, i, name, first, numbers, there) for i, name in enumerate(items, 1)]
    return tag("div", truth, seen, _differences(view, shot, first, last), class_="panels", tabindex="0", role="group",
               aria_label=f"{shot.entry['name']}, one panel per item")  # fmt: skip


def _panel(
    view: PageView, shot: _Shot, column: int, name: str, first: str, numbers: dict[int, int], pixels: bool
) -> Markup:
    key, seen = f"b{shot.index}-{column}", shot.seen.get(name)
    if seen is None:
        return _figure(shot, column, name, "not run on this image", [], pixels)
    reference = shot.seen[first].objects if first in shot.seen else seen.objects
    lost, gained = sorted(reference - seen.objects), seen.objects - reference
    missed = [shot.entry["truth"][i] for i in lost]
    layers = [
        _layer(view, shot, seen.alarms, "alarm", f"{key}a"),
        _layer(view, shot, [box for i, box in seen.by_object.items() if i not in gained], "found", f"{key}f"),
        _layer(view, shot, [box for i, box in seen.by_object.items() if i in gained], "gained", f"{key}g"),
        _layer(view, shot, missed, "lost", f"{key}l", [numbers.get(i) for i in lost]),
    ]
    counts = [f"{len(seen.objects)} found"]
    amounts = ((len(lost), "lost"), (len(gained), "gained"), (len(seen.alarms), "not labelled"))
    counts += [f"{amount} {word}" for amount, word in amounts if amount]
    return _figure(shot, column, name, ", ".join(counts), layers, pixels)


def _figure(shot: _Shot, column: int, name: str, caption: str, layers: Sequence[Markup | None], pixels: bool) -> Markup:
    width, height = map(px, shot.size)
    ground = tag("rect", width=width, height=height, class_="dusk")
    drawing = tag(
        "svg", ground, tag("use", href=f"#pixels-{shot.index}") if pixels else None, layers,
        viewBox=f"0 0 {width} {height}", role="img", aria_label=f"{shot.entry['name']}, {name}: {caption}",
    )  # fmt: skip
    title = tag("figcaption", tag("b", name), " ", tag("span", caption))
    return tag("figure", title, drawing, class_=f"panel p{column}")


def _layer(
    view: PageView,
    shot: _Shot,
    boxes: list[Box],
    kind: str,
    key: str,
    numbers: Sequence[int | None] = (),
) -> Markup | None:
    """Draw boxes of one kind, with a dark edge that keeps them visible on any image.

    Args:
        view: the comparison.
        shot: the image.
        boxes: the boxes.
        kind: style class of the boxes.
        key: id of the drawing.
        numbers: number of each box; None for a box without one.
    """
    if not boxes:
        return None
    drawn: list[Markup | None] = []
    for i, box in enumerate(boxes):
        outline = _outline(box, shot.task)
        drawn += [_drawn(outline, tag("title", _words(view, shot.task, box))), _mark(outline, kind)]
        if numbers and numbers[i] is not None:
            size = max(shot.size) / 26
            x, y = min(outline.x2 + size * 0.2, shot.size[0] - size), max(outline.y1 + size * 0.3, size)
            at = {"x": px(x), "y": px(y)}
            drawn.append(tag("text", numbers[i], **at, font_size=px(size)))
    return join(
        tag("g", tag("use", href=f"#{key}"), class_="b edge"),
        tag("g", tag("g", drawn, id=key, class_="boxes"), class_=f"b {kind}"),
    )


def _lost(shot: _Shot, first: str, last: str) -> list[int]:
    """The objects that the last item lost, in the order of the list."""
    if first not in shot.seen or last not in shot.seen:
        return []
    return sorted(shot.seen[first].objects - shot.seen[last].objects)


class _Outline(NamedTuple):
    """The outline of a box, px.

    Attributes:
        x1, y1, x2, y2: its upright bounds.
        corners: its corners in order; None if it is upright.
    """

    x1: float
    y1: float
    x2: float
    y2: float
    corners: list[tuple[float, float]] | None


def _outline(box: Box, task: Task) -> _Outline:
    values = task.corners(boxes_of([box], task))[0].tolist()
    if len(values) == 4:
        x1, y1, x2, y2 = values
        return _Outline(x1, y1, x2, y2, None)
    xs, ys = values[::2], values[1::2]
    return _Outline(min(xs), min(ys), max(xs), max(ys), list(zip(xs, ys)))


def _drawn(outline: _Outline, title: Markup) -> Markup:
    x1, y1, x2, y2, corners = outline
    if corners is not None:
        path = "L".join(f"{px(x)} {px(y)}" for x, y in corners)
        return tag("path", title, d=f"M{path}Z")
    sides = {"x": px(x1), "y": px(y1), "width": px(max(x2 - x1, 0)), "height": px(max(y2 - y1, 0))}
    return tag("rect", title, **sides)


def _mark(outline: _Outline, kind: str) -> Markup | None:
    """A sign in addition to colour and dashes: a stroke through a lost object, a plus in a gained one."""
    x1, y1, x2, y2, corners = outline
    if kind == "lost":
        (ax, ay), (bx, by) = ((x1, y2), (x2, y1)) if corners is None else (corners[0], corners[2])
        return tag("path", d=f"M{px(ax)} {px(ay)}L{px(bx)} {px(by)}")
    if kind == "gained":
        x, y, r = (x1 + x2) / 2, (y1 + y2) / 2, min(x2 - x1, y2 - y1) / 3
        return tag("path", d=f"M{px(x - r)} {px(y)}H{px(x + r)}M{px(x)} {px(y - r)}V{px(y + r)}")
    return None


def _words(view: PageView, task: Task, box: Box) -> str:
    """Describe a box: car 0.83."""
    classes = view.facts.classes
    index = int(box[0])
    name = classes[index] if 0 <= index < len(classes) else f"class {index}"
    return f"{name} {box[1]:.2f}" if len(box) == len(task.columns) + 2 else name


def _differences(view: PageView, shot: _Shot, first: str, last: str) -> Markup | None:
    """List the objects that the last item lost and gained, numbered as in the image."""
    if first not in shot.seen or last not in shot.seen or first == last:
        return None
    before, after = shot.seen[first], shot.seen[last]
    lost, gained = _lost(shot, first, last), sorted(after.objects - before.objects)

    def listing(words: str, objects: list[int], sure: _Seen, by: str, element: str) -> Markup | None:
        if not objects:
            return None
        lines = [
            tag(
                "li",
                _words(view, shot.task, box),
                tag("span", f", {_size(box, shot.task)}; {by} {sure.by_object[i][1]:.2f}"),
            )
            for i in objects[:_LISTED]
            for box in [shot.entry["truth"][i]]
        ]
        more = len(objects) - _LISTED
        return join(tag("p", tag("b", words)), tag(element, lines), tag("p", f"and {more} more") if more > 0 else None)

    same = f"{last} finds the same objects as {first}." if before.objects else "Neither model finds a labelled object."
    return tag(
        "div",
        listing(f"Lost by {last}", lost, before, first, "ol"),
        listing(f"Gained by {last}", gained, after, last, "ul"),
        tag("p", same) if not lost and not gained else None,
        class_="told",
    )


def _size(box: Box, task: Task) -> str:
    x1, y1, x2, y2, corners = _outline(box, task)
    if corners is None:
        return f"{x2 - x1:.0f} × {y2 - y1:.0f} px"
    a, b, c, _ = corners
    return f"{math.dist(b, c):.0f} × {math.dist(a, b):.0f} px"
