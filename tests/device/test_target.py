import json

import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.target import JetPack, Target

NAMES = ["cpu", "jetson-orin", "jetson-orin-nano", "jetson-orin-nx", "jetson-thor", "jetson-xavier", "rtx"]


def test_every_target_is_listed():
    assert Target.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_target_loads_and_fits_its_schema(name):
    jsonschema = pytest.importorskip("jsonschema")
    from edgeprune_device import schema

    target = Target.load(name)
    data = json.loads(json.dumps(target.to_json()))
    jsonschema.validate(data, schema.load("target"))
    assert Target.from_json(data) == target
    assert target.name == name and target.title and "fp32" in target.precisions
    assert target.channel_multiple == 8


def test_targets_match_the_hardware():
    assert Target.load("jetson-orin").sm == "8.7"
    assert JetPack("6.1-6.2.2", "36.4-36.5", "10.3.0") in Target.load("jetson-orin").jetpacks
    # TensorRT 8.5 parses up to opset 17, so it has no INT8 with FP16.
    assert Target.load("jetson-xavier").precisions == ("fp32", "fp16", "int8")
    assert Target.load("cpu").int8_activations == "unsigned" and Target.load("cpu").precisions == ("fp32", "int8")
    assert Target.load("jetson-orin").ahead_of_time == () and "SM86" in Target.load("rtx").ahead_of_time
    assert Target.load("jetson-orin-nano").dla == 0 and Target.load("jetson-thor").dla == 0
    for name in NAMES:
        if name != "cpu":
            assert Target.load(name).int8_activations == "signed"  # the only form that TensorRT's parser accepts


@pytest.mark.parametrize("wrong, near", [("jetson-orn", "jetson-orin"), ("Jetson-Thor", "jetson-thor"), ("rtz", "rtx")])
def test_error_of_an_unknown_name_suggests_similar_ones_and_lists_all(wrong, near):
    with pytest.raises(InputError) as caught:
        Target.load(wrong)
    assert f"did you mean {near}" in str(caught.value) and all(name in str(caught.value) for name in NAMES)


def test_path_out_of_the_folder_is_not_a_name():
    with pytest.raises(InputError, match=r"unknown target .*or a \.json file\)"):
        Target.load("../targets/cpu")


def test_target_file_of_the_user_is_loaded(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**Target.load("cpu").to_json(), "name": "mine", "channel_multiple": 16}))
    assert Target.load(path).channel_multiple == 16 and Target.load(str(path)).name == "mine"


@pytest.mark.parametrize(
    "change, word",
    [
        ({"precisions": ["fp32", "fp32"]}, "duplicate entry"),
        ({"precisions": ["fp8"]}, "fp8"),
        ({"channel_multiple": 0}, "at least 1"),
        ({"sm": "eight"}, "sm"),
        ({"schema_version": 2}, "unknown schema_version"),
        ({"surplus": 1}, "surplus"),
    ],
)
def test_malformed_file_is_one_line_with_its_name(tmp_path, change, word):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**Target.load("cpu").to_json(), **change}))
    with pytest.raises(InputError, match=word) as caught:
        Target.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_or_broken_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Target.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json: not valid JSON"):
        Target.load(tmp_path / "broken.json")
