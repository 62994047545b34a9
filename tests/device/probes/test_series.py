import copy
import json

import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.probes.series import Series

from .made_series import fits, series, steps


def good():
    return series(power__VDD_IN=steps(5000, 9000), temperature__tj=[1.5] * 30 + [None]).to_json()


def test_series_survives_json():
    data = good()
    assert fits("series", data) and fits("series", None)
    assert Series.from_json(json.loads(json.dumps(data))).to_json() == data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["t_ns"].pop(), r"series: channels.power.VDD_IN: found 31 values, expected 30"),
        (lambda d: d["t_ns"].__setitem__(1, 0), "series: t_ns: times not increasing"),
        (
            lambda d: d["channels"]["power.VDD_IN"].__setitem__("kind", "load"),
            "series: channels.power.VDD_IN: invalid name .expected a name that begins with load",
        ),
    ],
)
def test_inconsistent_series_is_refused(change, message):
    data = copy.deepcopy(good())
    change(data)
    with pytest.raises(InputError, match=message):
        Series.from_json(data)
