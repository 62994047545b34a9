import json

import pytest
import sysfs as boards
from edgeprune_device import schema
from edgeprune_device.machine import board
from hypothesis import given
from hypothesis import strategies as st


def fits(data):
    root = schema.load("report")
    schema._check(root["$defs"]["board"], json.loads(json.dumps(data)), "board", root)
    return True


@pytest.mark.parametrize(
    ("name", "model", "l4t", "jetpack"),
    [
        ("jetson-orin-nx, JetPack 5", "Orin NX", "35.4.1", "5.1.2"),
        ("jetson-orin-nano, JetPack 6", "Orin Nano", "36.4.3", "6.2"),
        ("jetson-agx-orin, JetPack 7", "AGX Orin", "39.2.0", "7.2"),
        ("jetson-agx-thor, JetPack 7", "AGX Thor", "38.2.2", "7.0"),
    ],
)
def test_recorded_boards_are_recognised(tmp_path, name, model, l4t, jetpack):
    jetson = board.read(boards.write(name, tmp_path))
    assert model in jetson.model and jetson.compatible[-1].startswith("nvidia,tegra") and jetson.serial.isdigit()
    assert (jetson.l4t, jetson.jetpack) == (l4t, jetpack)
    assert fits(jetson.to_json()) and board.Board.from_json(json.loads(json.dumps(jetson.to_json()))) == jetson


def test_machine_without_a_device_tree_has_no_board(tmp_path):
    assert board.read(tmp_path) == board.Board() and fits(board.Board().to_json())


def test_sys_takes_precedence_over_proc(tmp_path):
    root = boards.write("jetson-orin-nx, JetPack 6", tmp_path, {"proc/device-tree/model": "another\0"})
    assert "Orin NX" in board.read(root).model
    other = boards.write("jetson-orin-nx, JetPack 6", tmp_path / "proc", {"sys/firmware/devicetree/base/model": None})
    assert board.read(other).model is None
    (other / "proc/device-tree").mkdir()
    (other / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson of a container\0")
    assert board.read(other).model == "NVIDIA Jetson of a container"


@pytest.mark.parametrize(
    ("line", "l4t"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: …", "36.4.3"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: …", "35.4.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 45755727", "39.2.0"),
        ("# R36 (release), REVISION: 4", None),
        ("# R36 (release), REVISION: 4.3.2.1", None),
        ("# R36 (release), REVISION: 4.x", None),
        ("R36 (release), REVISION: 4.3", None),
        ("", None),
    ],
)
def test_l4t_release_is_parsed(line, l4t):
    assert board.parse_l4t(line + "\n# KERNEL_VARIANT: oot\n") == l4t


def test_jetpack_is_a_range_if_not_known_exactly():
    assert board.jetpack("36.4.3") == "6.2" and board.jetpack("36.4.99") == "6.1-6.2.2"
    assert board.jetpack("32.7.1") is None and board.jetpack("99.0.0") is None


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_content_fits_the_report(tmp_path_factory, text, release):
    root = tmp_path_factory.mktemp("board")
    base = root / "sys/firmware/devicetree/base"
    base.mkdir(parents=True)
    (root / "etc").mkdir()
    for name in ("model", "compatible", "serial-number"):
        (base / name).write_bytes(text)
    (root / "etc/nv_tegra_release").write_bytes(b"# R36 (release), REVISION: " + release)
    assert fits(board.read(root).to_json())
