import copy
import json
from pathlib import Path

import edgeprune_device.schema as schema
import pytest
from edgeprune_device.errors import InputError
from hypothesis import given, settings
from hypothesis import strategies as st

jsonschema = pytest.importorskip("jsonschema")
NAMES = sorted(path.stem for path in Path(schema.__file__).parent.glob("*.json"))
SAMPLE = {
    "schema_version": 1,
    "pictures": [{"name": "a.jpg", "boxes": [[0, 1.5, 2, 3, 4]]}],
}


def walk(node):
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from walk(value)


def test_every_noun_has_a_schema():
    assert NAMES == ["detections", "engine", "manifest", "release", "report", "status", "target", "truth"]


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_valid_and_closed(name):
    data = schema.load(name)
    jsonschema.Draft202012Validator.check_schema(data)
    assert data["additionalProperties"] is False and "schema_version" in data["required"]
    for rule in walk(data):
        pattern = rule.get("pattern")
        if isinstance(pattern, str):  # unanchored patterns have another meaning with fullmatch
            assert pattern[0] == "^" and pattern[-1] == "$"


def broken(draw_value, path, value):
    data = copy.deepcopy(draw_value)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return data


JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.lists(st.integers(0, 5), max_size=6)
    | st.dictionaries(st.text(max_size=4), st.integers(), max_size=3)
)
PATHS = [
    ("pictures",),
    ("pictures", 0),
    ("pictures", 0, "name"),
    ("pictures", 0, "boxes"),
    ("pictures", 0, "boxes", 0),
    ("pictures", 0, "boxes", 0, 1),
    ("surplus",),
]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PATHS), JUNK)
def test_check_agrees_with_jsonschema(path, value):
    data = broken(SAMPLE, path, value)
    valid = jsonschema.Draft202012Validator(schema.load("truth")).is_valid(data)
    if valid:
        assert schema.check("truth", data, "x") is data
    else:
        with pytest.raises(InputError, match=r"^x: "):
            schema.check("truth", data, "x")


@pytest.mark.parametrize("version", [0, 3, "1", None, True, 1.5])
@pytest.mark.parametrize("name", NAMES)
def test_unknown_version_is_reported_first(name, version):
    with pytest.raises(InputError, match=r"unknown schema_version"):
        schema.check(name, {"schema_version": version, "nonsense": 1}, "x")


def test_messages_name_the_field():
    with pytest.raises(InputError, match=r"x: pictures\[0\]\.boxes\[0\]\[1\]: must be number, not string"):
        schema.check("truth", broken(SAMPLE, ("pictures", 0, "boxes", 0, 1), "1"), "x")
    with pytest.raises(InputError, match="missing field 'pictures'"):
        schema.check("truth", {"schema_version": 1}, "x")
    with pytest.raises(InputError, match="unknown field 'surplus'"):
        schema.check("truth", {**SAMPLE, "surplus": 1}, "x")
    with pytest.raises(InputError, match="must be a JSON object, not array"):
        schema.check("truth", [], "x")


def test_schemas_use_only_supported_keywords():
    for name in NAMES:
        for rule in _rules(schema.load(name)):
            assert set(rule) <= set(schema._KEYWORDS) | schema._ANNOTATIONS, (name, rule)


def _rules(rule):
    yield rule
    for key in ("properties", "$defs"):
        for inner in rule.get(key, {}).values():
            yield from _rules(inner)
    for key in ("items", "additionalProperties", "propertyNames"):
        if isinstance(rule.get(key), dict):
            yield from _rules(rule[key])


def test_load_returns_the_content_of_the_file():
    path = Path(schema.__file__).parent / "target.json"
    assert schema.load("target") == json.loads(path.read_text())
