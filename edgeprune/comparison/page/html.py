"""Builds HTML safely: every text that is not `Markup` is escaped.

>>> tag("td", "a < b", class_="name")
'<td class="name">a &lt; b</td>'
"""

from __future__ import annotations

import html
from typing import Any

from edgeprune_device.printable import printable

_VOID = {"meta", "link", "input", "br", "hr", "col"}


class Markup(str):
    """Text that is already HTML; only this module and constants in this package create it."""

    __slots__ = ()


def escape(text: Any) -> Markup:
    """Escape tags, control characters and changes of writing direction."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(str(text))))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """Build <name attributes>children</name>.

    Args:
        name: name of the element.
        children: texts, numbers, Markup, or lists of these; None is left out.
        attributes: values by name. A trailing underscore is removed, other underscores become hyphens (class_,
            aria_label). None or False leaves an attribute out, True gives it no value.
    """
    opened = Markup(f"<{name}{''.join(_attribute(k, v) for k, v in attributes.items())}>")
    return opened if name in _VOID else Markup(f"{opened}{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Concatenate children; texts are escaped."""
    parts = []
    for child in children:
        if isinstance(child, (list, tuple)):
            parts.append(join(*child))
        elif child is not None:
            parts.append(escape(child))
    return Markup("".join(parts))


def _attribute(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(value)}"'
