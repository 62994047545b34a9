"""theme: colours with enough contrast on both grounds."""

import numpy as np

from edgeprune.comparison.page import theme


def contrast(one, other):
    def luminance(colour):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_chart_colours_have_contrast_on_both_grounds_and_to_white_text():
    for colour in theme.BRIGHT:
        assert contrast(colour, theme.TOKENS["ground"][1]) >= 6, colour
    for colour in (*theme.ITEMS, *theme.STAGES.values()):
        assert contrast(colour, "#ffffff") >= 4.5 and contrast(colour, theme.TOKENS["ground"][1]) >= 3, colour
