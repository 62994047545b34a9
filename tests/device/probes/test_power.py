"""Tests of power readings on recorded boards (tests/device/sysfs)."""

import pytest
import sysfs as boards
from edgeprune_device.probes import power

from .readings import ORINS, values


@pytest.mark.parametrize("name", [name for name in ORINS if "agx" not in name])
def test_orin_nx_and_nano_power_is_voltage_times_current(tmp_path, name):
    readings = values(boards.write(name, tmp_path))
    rails = {key: value for key, value in readings.items() if key.startswith("power.")}
    assert rails == {"power.VDD_IN": 5250.0, "power.VDD_CPU_GPU_CV": 510.0, "power.VDD_SOC": 2720.0}  # without in7


@pytest.mark.parametrize("name", [name for name in ORINS if "agx" in name])
def test_agx_orin_has_four_rails_without_nc(tmp_path, name):
    readings = values(boards.write(name, tmp_path))
    rails = {key: round(value) for key, value in readings.items() if key.startswith("power.")}
    expected = {"VDD_GPU_SOC": 3363, "VDD_CPU_CV": 478, "VIN_SYS_5V0": 4869, "VDDQ_VDD2_1V8AO": 397}
    assert rails == {f"power.{rail}": value for rail, value in expected.items()}


@pytest.mark.parametrize(
    ("names", "source", "whole", "rails"),
    [
        (["VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC"], "VDD_IN, the whole module", True, ("VDD_IN",)),
        (
            ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"],
            "sum of rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (VDDQ_VDD2_1V8AO is part of VIN_SYS_5V0; not added "
            "again)",
            False,
            ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        ),
        (
            ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"],
            "sum of rails VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0",
            False,
            ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
        ),
        (
            ["VDD_GPU", "VIN", "VIN_SYS_5V0"],
            "VIN, the whole board including its carrier",
            True,
            ("VIN",),
        ),
        (["VDD_GPU_SOC", "MY_12V"], None, False, ()),
    ],
)
def test_total_power_is_a_sensor_or_a_sum_of_rails(names, source, whole, rails):
    total = power.total(names)
    assert (total.whole_module, total.rails) == (whole, rails)
    assert total.source == source or (source is None and "separate rails" in total.source)


def test_total_without_rails_is_none():
    assert power.total([]) is None


@pytest.mark.parametrize(
    ("volt", "ampere", "milliwatts"),
    [
        ("5000", "1000", 5000.0),
        ("5000", "-8", None),  # VDD_IN cannot be 0 on a running board
        ("0", "0", None),
        ("5000", "", None),
        ("5000", "99999", None),
        ("-5000", "1000", None),
        ("32760", "82000", None),  # each within its range, but 2.7 kW together
        ("5000 mV", "1000", None),
        ("5e3", "1000", None),
        ("٥٠٠٠", "1000", None),
    ],
)
def test_impossible_power_is_none(tmp_path, volt, ampere, milliwatts):
    name = "jetson-orin-nx, JetPack 6"
    volt_path, ampere_path = boards.rail(name, "VDD_IN")
    readings = values(boards.write(name, tmp_path, {volt_path: volt, ampere_path: ampere}))
    assert readings["power.VDD_IN"] == milliwatts and readings["power.VDD_SOC"] == 2720


def test_rail_that_is_off_draws_no_power(tmp_path):
    name = "jetson-orin-nx, JetPack 6"
    _, ampere_path = boards.rail(name, "VDD_CPU_GPU_CV")
    assert values(boards.write(name, tmp_path, {ampere_path: -8}))["power.VDD_CPU_GPU_CV"] == 0


def test_disabled_or_unlabelled_rail_is_not_a_channel(tmp_path):
    name = "jetson-orin-nx, JetPack 6"
    volt, _ = boards.rail(name, "VDD_SOC")
    other, _ = boards.rail(name, "VDD_CPU_GPU_CV")
    changes = {volt.replace("_input", "_enable"): 0, other.replace("_input", "_label"): None}
    readings = values(boards.write(name, tmp_path, changes))
    assert [key for key in readings if key.startswith("power.")] == ["power.VDD_IN"]
