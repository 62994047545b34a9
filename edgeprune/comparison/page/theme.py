"""The page's colours, light and dark, in one table.

The colours of items and stages are those of Okabe and Ito at a common lightness; colour-blind readers can distinguish
them. Their contrast is at least 3:1 against white and against the dark ground, so they also work in light and dark
notebooks, which have no custom properties. The contrast of white text on them is 4.5:1. No information is in colour
alone.
"""

from __future__ import annotations

TOKENS = {  # name: (light, dark)
    "ground": ("#ffffff", "#12161c"),
    "raised": ("#f5f7f9", "#1a2028"),
    "line": ("#d9dee4", "#303a45"),
    "ink": ("#17202a", "#e9edf2"),
    "quiet": ("#55606e", "#a3afbc"),
    "accent": ("#1a5fa0", "#7fb8ee"),
    "good": ("#0f6a42", "#62cf9f"),
    "bad": ("#a8231a", "#ff938a"),
    "warn": ("#7d5200", "#ecb552"),
    "good-ground": ("#e8f5ee", "#12291f"),
    "bad-ground": ("#fdecea", "#361716"),
    "warn-ground": ("#fdf3df", "#2f240e"),
}
BRIGHT = ("#97a1af", "#6db3f0", "#f0994a", "#4fc08d", "#bd93e8", "#f0808f", "#cdb83a", "#4cc0c9")  # of items, on dark
ITEMS = ("#6b7482", "#1f6fb2", "#b85c00", "#187a58", "#8a55b8", "#b23b4f", "#7d6a00", "#14777f")
DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2")
STAGES = {"decode": "#6b7482", "pre": "#14777f", "infer": "#1f6fb2", "post": "#b85c00"}


def css() -> str:
    """The custom properties, for the system's preference and for the reader's choice."""
    pairs = {**TOKENS, **{f"item-{i}": pair for i, pair in enumerate(zip(ITEMS, BRIGHT))}}
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in pairs.items()) for i in (0, 1))
    return (
        f":root{{color-scheme:light;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{dark}}}}}"
        f"@media screen{{:root:has(#theme-light:checked){{color-scheme:light;{light}}}"
        f":root:has(#theme-dark:checked){{color-scheme:dark;{dark}}}}}"
    )


def colour(index: int) -> str:
    """The colour of the item at `index`; the first, which is the reference, is grey."""
    which = 0 if index == 0 else 1 + (index - 1) % (len(ITEMS) - 1)
    return f"var(--item-{which},{ITEMS[which]})"


def dash(index: int) -> str:
    """The dashes of an item's line, so that colour is not the only distinction."""
    return DASHES[index % len(DASHES)]
