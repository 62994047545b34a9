"""The section of the same images with each model's detections, side by side, the worst losses first.

Each image is embedded once; every panel refers to it and draws its own boxes over it. A labelled object is lost if the
first item finds it and the panel's item does not; its box is dashed and struck through. The losses of the last item are
numbered, as in the list beside the panels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeprune.comparison.gallery import match
from edgeprune.comparison.page import jpegs, parts
from edgeprune.comparison.page.figures import number
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.svg import px
from edgeprune.comparison.page.view import PageView

_TRUTH = "truth"
_STEPS = ("pruned", "tuned")  # models of a build
_PANELS = 6  # further panels are shown when the reader selects them
_LISTED = 12
Box = list  # [class, x1, y1, x2, y2] of the truth, [class, confidence, x1, y1, x2, y2] px of a detection


@dataclass(frozen=True)
class _Seen:
    """The detections of one item in one image.

    Attributes:
        hits: detections that find an object.
        objects: indices of the objects found.
        alarms: false alarms.
        by_object: {object: the detection that finds it}.
    """

    hits: list[Box]
    objects: set[int]
    alarms: list[Box]
    by_object: dict[int, Box]


@dataclass(frozen=True)
class _Shot:
    """One image: its labels, and each item's detections at the gallery's confidence."""

    index: int
    name: str
    width: float
    height: float
    truth: list[Box]
    seen: dict[str, _Seen]
    lost: int
    gained: int
    path: str | None


def section(view: PageView, budget: int) -> Markup:
    """Render the section within a limit of size.

    Images that do not fit are left out, those with the fewest losses first.

    Args:
        view: the comparison.
        budget: bytes that the section may take.
    """
    gallery = view.data.get("gallery")
    if not gallery or not gallery.get("pictures"):
        return parts.quiet("No pictures: the comparison was made without a data set, or of reports alone.")
    first, last = gallery["first"], gallery["last"]
    shots = [_shot(i, entry, gallery["conf"], gallery["iou"]) for i, entry in enumerate(gallery["pictures"])]
    panels = _panels(view, shots, first)
    pictures = [jpegs.read(shot.path) for shot in shots]
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
        more = f"{left_out} more picture{'s were' if left_out != 1 else ' was'} left out"
        words = parts.quiet(more, " to keep this page small: those with the fewest losses.")
    scaled = parts.quiet(f"Pictures are scaled to {side} px at most; boxes are drawn where they were found.")
    return tag("div", lead, cards, words, scaled if any(urls) else None, class_="gallery")


def _shot(index: int, entry: dict, conf: float, iou: float) -> _Shot:
    truth = entry.get("truth") or []
    seen = {}
    for name, boxes in (entry.get("found") or {}).items():
        sure = [box for box in boxes if box[1] >= conf]
        matched = match(truth, sure, iou)
        by_object = {object_: box for box, object_ in zip(sure, matched) if object_ is not None}
        alarms = [box for box, object_ in zip(sure, matched) if object_ is None]
        seen[name] = _Seen(list(by_object.values()), set(by_object), alarms, by_object)
    return _Shot(
        index, entry["name"], number(entry.get("width")) or 1, number(entry.get("height")) or 1, truth, seen,
        entry.get("lost") or 0, entry.get("gained") or 0, entry.get("path"),
    )  # fmt: skip


def _panels(view: PageView, shots: list[_Shot], first: str) -> list[str]:
    """The names of the panels: the first item, then the others in their order."""
    known = {name for shot in shots for name in shot.seen}
    return [first, *(item["name"] for item in view.items if item["name"] in known and item["name"] != first)]


def _lead(gallery: dict, items: list[str]) -> Markup:
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
        (_sign("lost"), f"lost: {first} finds it, this one does not"),
        (_sign("gained"), f"gained: {first} does not find it"),
        (_sign("alarm"), "found, but not labelled"),
    ]
    return join(
        tag("p", "Worst losses of ", tag("b", last), " against ", tag("b", first), " first. Detections of confidence ",
            f"{gallery['conf']:g} and more; one finds an object of its class at an IoU of {gallery['iou']:g} or more."),
        parts.legend(signs),
        tag("fieldset", tag("legend", "Show"), choices, class_="choices"),
    )  # fmt: skip


def _sign(kind: str) -> Markup:
    box = tag("g", tag("rect", x=4, y=3, width=16, height=12), _mark((4, 3, 20, 15), kind), class_=f"b {kind}")
    ground = tag("rect", width=24, height=18, rx=2, class_="dusk")
    return tag("svg", ground, box, width=24, height=18, aria_hidden="true")


def _head(shot: _Shot, picture: jpegs.GalleryImage) -> Markup:
    return join(
        tag("h3", shot.name, id=f"picture-{shot.index}"),
        tag(
            "p", tag("b", f"{shot.lost} lost", class_="bad" if shot.lost else None), ", ",
            tag("b", f"{shot.gained} gained", class_="good" if shot.gained else None),
            f"; {len(shot.truth)} labelled.", _trouble(shot, picture), class_="count",
        ),
    )  # fmt: skip


def _trouble(shot: _Shot, picture: jpegs.GalleryImage) -> Markup | None:
    words = None
    if picture.error:
        words = f" The picture is not here: {picture.error}. Only its boxes are drawn."
    elif picture.size != (shot.width, shot.height):
        size = f"{picture.size[0]} × {picture.size[1]}"
        words = f" The file has changed: it is {size} px, it was {px(shot.width)} × {px(shot.height)}."
    return tag("span", words, class_="warn") if words else None


def _embedded(shot: _Shot, url: str | None) -> Markup | None:
    """The pixels of an image, embedded once; the panels refer to them."""
    if url is None:
        return None
    image = tag("image", href=Markup(url), width=px(shot.width), height=px(shot.height), preserveAspectRatio="none",
                id=f"pixels-{shot.index}")  # fmt: skip
    return tag("svg", tag("defs", image), width=0, height=0, class_="pixels", aria_hidden="true")


def _body(view: PageView, shot: _Shot, picture: jpegs.GalleryImage, items: list[str], first: str, last: str) -> Markup:
    labelled = _layer(view, shot.truth, "truth", f"b{shot.index}-0")
    truth = _figure(shot, 0, _TRUTH, f"{len(shot.truth)} labelled", [labelled], picture.image is not None)
    numbers = {object_: i for i, object_ in enumerate(_lost(shot, first, last), 1)}
    seen = [_panel(view, shot, i, name, first, numbers, picture.image is not None) for i, name in enumerate(items, 1)]
    return tag("div", truth, seen, _told(view, shot, first, last), class_="panels", tabindex="0", role="group",
               aria_label=f"{shot.name}, one panel an item")  # fmt: skip


def _panel(
    view: PageView, shot: _Shot, column: int, name: str, first: str, numbers: dict[int, int], pixels: bool
) -> Markup:
    key, seen = f"b{shot.index}-{column}", shot.seen.get(name)
    if seen is None:
        return _figure(shot, column, name, "not run on this picture", [], pixels)
    reference = shot.seen[first].objects if first in shot.seen else seen.objects
    lost, gained = sorted(reference - seen.objects), seen.objects - reference
    layers = [
        _layer(view, seen.alarms, "alarm", f"{key}a"),
        _layer(view, [box for i, box in seen.by_object.items() if i not in gained], "found", f"{key}f"),
        _layer(view, [box for i, box in seen.by_object.items() if i in gained], "gained", f"{key}g"),
        _layer(view, [shot.truth[i] for i in lost], "lost", f"{key}l", shot, [numbers.get(i) for i in lost]),
    ]
    said = [f"{len(seen.objects)} found"]
    said += [f"{len(boxes)} {word}" for boxes, word in
             ((lost, "lost"), (gained, "gained"), (seen.alarms, "not labelled")) if boxes]  # fmt: skip
    return _figure(shot, column, name, ", ".join(said), layers, pixels)


def _figure(shot: _Shot, column: int, name: str, said: str, layers: list, pixels: bool) -> Markup:
    size = {"width": px(shot.width), "height": px(shot.height)}
    drawing = tag(
        "svg", tag("rect", **size, class_="dusk"), tag("use", href=f"#pixels-{shot.index}") if pixels else None, layers,
        viewBox=f"0 0 {size['width']} {size['height']}", role="img", aria_label=f"{shot.name}, {name}: {said}",
    )  # fmt: skip
    return tag("figure", tag("figcaption", tag("b", name), " ", tag("span", said)), drawing, class_=f"panel p{column}")


def _layer(
    view: PageView, boxes: list[Box], kind: str, key: str, shot: _Shot | None = None, numbers=()
) -> Markup | None:
    """Draw boxes of one kind, some with a number, over a dark edge that keeps them visible on any image."""
    if not boxes:
        return None
    drawn: list[Any] = []
    for i, box in enumerate(boxes):
        x1, y1, x2, y2 = box[-4:]
        sides = {"x": px(x1), "y": px(y1), "width": px(max(x2 - x1, 0)), "height": px(max(y2 - y1, 0))}
        drawn += [tag("rect", tag("title", _words(view, box)), **sides), _mark((x1, y1, x2, y2), kind)]
        if shot is not None and numbers[i] is not None:
            size = max(shot.width, shot.height) / 26
            at = {"x": px(min(x2 + size * 0.2, shot.width - size)), "y": px(max(y1 + size * 0.3, size))}
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


def _mark(box: tuple, kind: str) -> Markup | None:
    """A sign in addition to colour and dashes: a stroke through a lost object, a plus in a gained one."""
    x1, y1, x2, y2 = box
    if kind == "lost":
        return tag("path", d=f"M{px(x1)} {px(y2)}L{px(x2)} {px(y1)}")
    if kind == "gained":
        x, y, r = (x1 + x2) / 2, (y1 + y2) / 2, min(x2 - x1, y2 - y1) / 3
        return tag("path", d=f"M{px(x - r)} {px(y)}H{px(x + r)}M{px(x)} {px(y - r)}V{px(y + r)}")
    return None


def _words(view: PageView, box: Box) -> str:
    """Describe a box: car 0.83."""
    classes = view.data.get("classes") or []
    index = int(box[0])
    name = classes[index] if 0 <= index < len(classes) else f"class {index}"
    return f"{name} {box[1]:.2f}" if len(box) == 6 else str(name)


def _told(view: PageView, shot: _Shot, first: str, last: str) -> Markup | None:
    """List the objects that the last item lost and gained, with the numbers of the image."""
    if first not in shot.seen or last not in shot.seen or first == last:
        return None
    before, after = shot.seen[first], shot.seen[last]
    lost, gained = _lost(shot, first, last), sorted(after.objects - before.objects)

    def listing(words: str, objects: list[int], sure: _Seen, by: str, element: str) -> Markup | None:
        if not objects:
            return None
        lines = [
            tag("li", _words(view, box), tag("span", f", {_size(box)}; {by} {sure.by_object[i][1]:.2f}"))
            for i in objects[:_LISTED]
            for box in [shot.truth[i]]
        ]
        more = len(objects) - _LISTED
        return join(tag("p", tag("b", words)), tag(element, lines), tag("p", f"and {more} more") if more > 0 else None)

    same = f"{last} finds what {first} finds." if before.objects else "Neither finds a labelled object."
    return tag(
        "div",
        listing(f"Lost by {last}", lost, before, first, "ol"),
        listing(f"Gained by {last}", gained, after, last, "ul"),
        tag("p", same) if not lost and not gained else None,
        class_="told",
    )


def _size(box: Box) -> str:
    x1, y1, x2, y2 = box[-4:]
    return f"{x2 - x1:.0f} × {y2 - y1:.0f} px"
