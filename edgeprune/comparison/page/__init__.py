"""A Comparison as one page: self-contained, light and dark, for screens, phones, keyboards and paper.

    render(comparison)    the whole page, one HTML document
    pareto(comparison)    its plot of latency × mAP, an SVG for a notebook
    fragment(comparison)  a small table for a notebook

The page loads nothing: its images are embedded, its script only adds
convenience, and its content security policy forbids network access. A section is a function that renders the view
as HTML.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files

from edgeprune.comparison.facts import Facts
from edgeprune.comparison.page import (
    classes,
    distribution,
    environment,
    gallery,
    items,
    layers,
    stages,
    summary,
    theme,
    tradeoff,
)
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView

__all__ = ["fragment", "pareto", "render"]

MOST_BYTES = 3_000_000
_SPARE = 20_000

Section = tuple[str, str, Callable[[PageView], Markup]]
#: (word in the navigation, heading, function that renders it), in the page's order. The gallery uses the
#: remaining bytes and follows these sections.
_BEFORE: tuple[Section, ...] = (
    ("Summary", "Summary", summary.section),
    ("Items", "All items", items.section),
    ("Trade-off", "Latency against accuracy", tradeoff.section),
    ("Channels", "Channels kept per layer", layers.section),
    ("Stages", "Latency by stage", stages.section),
    ("Latency", "Latency distribution", distribution.section),
    ("Classes", "Accuracy by class", classes.section),
)
_GALLERY = ("Gallery", "The same images, side by side")
_AFTER: tuple[Section, ...] = (
    ("Environment", "Environment, versions, hashes", environment.section),
    ("Reproduce", "Repeat the measurement", environment.reproduce),
)


def render(comparison: Facts) -> str:
    """Render the page, of at most 3 MB for any number of gallery images; it states how many images were left out."""
    view = PageView(comparison)
    before = [_section(*entry, view) for entry in (_BEFORE if view.items else _BEFORE[:1])]
    after = [_section(*entry, view) for entry in _AFTER]
    rest = _document(view, join(before, after))
    pictures = gallery.section(view, MOST_BYTES - _SPARE - len(rest.encode()))
    return str(_document(view, join(before, _wrap(*_GALLERY, pictures), after)))


def pareto(comparison: Facts) -> str:
    """Render the plot of latency × mAP over all items as an SVG element."""
    return str(tradeoff.plot(PageView(comparison), 760))


def fragment(comparison: Facts) -> str:
    """Render a small table, before -> after of every item, for a notebook's `_repr_html_`."""
    view = PageView(comparison)
    return str(items.fragment(view)) if view.items else "<p>Nothing was compared.</p>"


def _section(word: str, heading: str, fill: Callable[[PageView], Markup], view: PageView) -> Markup:
    return _wrap(word, heading, fill(view))


def _wrap(word: str, heading: str, content: Markup) -> Markup:
    key = _key(word)
    return tag("section", tag("h2", heading, id=f"{key}-heading"), content, id=key, aria_labelledby=f"{key}-heading")


def _key(word: str) -> str:
    return f"section-{word.lower()}"


def _document(view: PageView, body: Markup) -> Markup:
    style, script = theme.css() + _asset("style.css"), _asset("comfort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{view.title} · edgeprune"),
        tag("style", Markup(style)),
    )
    skip = tag("a", "Skip to the summary", href="#section-summary", class_="skip")
    parts = (skip, _header(view), _navigation(view), tag("main", body), _footer(), tag("script", Markup(script)))
    return Markup(f'<!doctype html>\n<html lang="en">{head}{tag("body", *parts)}</html>\n')


def _header(view: PageView) -> Markup:
    kind = "Build report" if view.is_build else "Comparison"
    created = view.facts.created.replace("T", " ").replace("Z", " UTC")
    return tag(
        "header",
        tag("div", tag("p", "edgeprune", class_="brand"), _themes(), class_="top"),
        tag("p", kind, f" · {created}" if created else None, class_="eyebrow"),
        tag("h1", view.title, class_="long" if len(view.title) > 60 else None),
        summary.verdict(view),
        summary.warnings(view),
    )


def _navigation(view: PageView) -> Markup:
    before = [section[0] for section in (_BEFORE if view.items else _BEFORE[:1])]
    words = [*before, _GALLERY[0], *(section[0] for section in _AFTER)]
    links = [tag("li", tag("a", word, href=f"#{_key(word)}")) for word in words]
    return tag("nav", tag("ul", links), aria_label="Sections")


def _themes() -> Markup:
    """The choice of the theme. It works without the script, which only remembers it."""
    choices = [
        join(tag("input", type="radio", name_="theme", id=f"theme-{key}", checked=key == "auto"),
             tag("label", words, for_=f"theme-{key}"))
        for key, words in (("auto", "Auto"), ("light", "Light"), ("dark", "Dark"))
    ]  # fmt: skip
    return tag("fieldset", tag("legend", "Colours", class_="hidden"), choices, class_="themes")


def _footer() -> Markup:
    words = "Made by edgeprune. Unmeasured figures are marked. Figures from different machines are never compared."
    return tag("footer", tag("p", words))


def _asset(name: str) -> str:
    return files(__name__).joinpath(name).read_text("utf-8")
