"""HTML that cannot be forged: whatever is not `Markup` already is escaped, in this one place.

>>> tag("td", "a < b", class_="name")
'<td class="name">a &lt; b</td>'
"""

from __future__ import annotations

import html
from typing import Any

from edgeprune_device.printable import printable

_VOID = {"meta", "link", "input", "br", "hr", "col"}


class Markup(str):
    """Text that is HTML already. Only this module and constants of this package make it."""

    __slots__ = ()


def escape(text: Any) -> Markup:
    """Text as HTML: nothing in it is a tag, a control character or a change of writing direction."""
    return text if isinstance(text, Markup) else Markup(html.escape(printable(str(text))))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """<name attributes>children</name>. A child: text, a number, Markup, or a list of such; None is nothing.

    An attribute's trailing underscore goes, others become hyphens (class_, aria_label), save in viewBox and its like,
    which have none. None or False leaves it out, True gives it no value.
    """
    opened = Markup(f"<{name}{''.join(_attribute(k, v) for k, v in attributes.items())}>")
    return opened if name in _VOID else Markup(f"{opened}{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Children one after the other, escaped where they are text."""
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
