import json
import time

import pytest
from edgeprune_device import strict_json
from edgeprune_device.errors import InputError
from hypothesis import given
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "text, word",
    [
        (b'{"a": 1, "a": 2}', "duplicate key"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "too large"),
        (b"[" + b"9" * 1_000_000 + b"]", "too long"),
        (b"[" * 100_000, "deeply"),
        (b"[" * 65 + b"]" * 65, "deeply"),
        (b'["\\ud800"]', "surrogates"),
        (b"\xff", "utf-8"),
        (b"", "Expecting value"),
        (b"{} x", "Extra data"),
    ],
)
def test_invalid_json_is_refused(text, word):
    with pytest.raises(InputError, match=f"a file: not valid JSON .*{word}"):
        strict_json.loads(text, "a file")


@pytest.mark.parametrize("piece", [b"[],", b"{},", b'{"a":0},', b'"ab",', b"300,", b'"\\ud83d\\ude00",'])
def test_json_that_needs_too_much_memory_is_refused_before_parsing(monkeypatch, piece):
    data = b"[" + piece * (30_000_000 // len(piece)) + b"0]"
    monkeypatch.setattr(json, "loads", None)
    with pytest.raises(strict_json.TooLarge, match=r"^x: too large to be read \(found 30\.0 MB that take up to"):
        strict_json.loads(data, "x")


@given(VALUES)
def test_canonical_round_trip(value):
    data = strict_json.canonical(value)
    again = strict_json.loads(data, "x")
    assert again == value and strict_json.canonical(again) == data


def test_canonical_is_sorted_ascii_without_spaces():
    assert strict_json.canonical({"b": "ü", "a": [1, 2.5]}) == b'{"a":[1,2.5],"b":"\\u00fc"}'
    with pytest.raises(ValueError):
        strict_json.canonical(float("nan"))


def test_pretty_json_has_the_same_value():
    assert json.loads(strict_json.pretty({"b": 1, "a": "ü"})) == {"b": 1, "a": "ü"}


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_one_input_error(data):
    try:
        strict_json.loads(data, "x")
    except InputError as error:
        assert "\n" not in str(error)


def test_duplicate_among_many_keys_is_found_quickly():
    count = 200_000  # comparing all pairs would take minutes
    text = ",".join(f'"{i}":0' for i in range(count)).encode()
    began = time.monotonic()
    with pytest.raises(InputError, match=f"duplicate key '{count - 1}'"):
        strict_json.loads(b'{%b,"%d":0}' % (text, count - 1), "test")
    assert time.monotonic() - began < 20
