"""Power, on recorded boards (tests/device/sysfs)."""

import pytest
import sysfs as boards
from edgeprune_device.probes import power

from .readings import ORINS, values


@pytest.mark.parametrize("name", [name for name in ORINS if "agx" not in name])
def test_orin_nx_and_nano_power_is_voltage_times_current(tmp_path, name):
    found = values(boards.write(name, tmp_path))
    rails = {key: value for key, value in found.items() if key.startswith("power.")}
    assert rails == {"power.VDD_IN": 5250.0, "power.VDD_CPU_GPU_CV": 510.0, "power.VDD_SOC": 2720.0}  # and no in7


@pytest.mark.parametrize("name", [name for name in ORINS if "agx" in name])
def test_agx_orin_has_four_rails_and_nc_is_none(tmp_path, name):
    found = values(boards.write(name, tmp_path))
    rails = {key: round(value) for key, value in found.items() if key.startswith("power.")}
    expected = {"VDD_GPU_SOC": 3363, "VDD_CPU_CV": 478, "VIN_SYS_5V0": 4869, "VDDQ_VDD2_1V8AO": 397}
    assert rails == {f"power.{rail}": value for rail, value in expected.items()}


@pytest.mark.parametrize(
    ("names", "source", "whole", "rails"),
    [
        (["VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC"], "VDD_IN, the whole module", True, ("VDD_IN",)),
        (
            ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"],
            "sum of rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (VDDQ_VDD2_1V8AO lies inside VIN_SYS_5V0; not added "
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
            "VIN, the whole board, its carrier included",
            True,
            ("VIN",),
        ),
        (["VDD_GPU_SOC", "MY_12V"], None, False, ()),
    ],
)
def test_what_the_whole_power_is_made_of(names, source, whole, rails):
    found = power.total(names)
    assert (found.whole_module, found.rails) == (whole, rails)
    assert found.source == source or (source is None and "alone" in found.source)


def test_no_rails_no_total():
    assert power.total([]) is None


@pytest.mark.parametrize(
    ("volt", "ampere", "milliwatts"),
    [
        ("5000", "1000", 5000.0),
        ("5000", "-8", None),  # VDD_IN cannot be 0 on a board that answers
        ("0", "0", None),
        ("5000", "", None),
        ("5000", "99999", None),
        ("-5000", "1000", None),
        ("32760", "82000", None),  # each in its range, but 2.7 kW
        ("5000 mV", "1000", None),
        ("5e3", "1000", None),
        ("٥٠٠٠", "1000", None),
    ],
)
def test_a_power_that_cannot_be_is_none(tmp_path, volt, ampere, milliwatts):
    name = "jetson-orin-nx, JetPack 6"
    volt_path, ampere_path = boards.rail(name, "VDD_IN")
    found = values(boards.write(name, tmp_path, {volt_path: volt, ampere_path: ampere}))
    assert found["power.VDD_IN"] == milliwatts and found["power.VDD_SOC"] == 2720


def test_a_rail_that_is_off_draws_nothing(tmp_path):
    name = "jetson-orin-nx, JetPack 6"
    _, ampere_path = boards.rail(name, "VDD_CPU_GPU_CV")
    assert values(boards.write(name, tmp_path, {ampere_path: -8}))["power.VDD_CPU_GPU_CV"] == 0


def test_a_rail_that_is_switched_off_or_has_no_label_is_no_channel(tmp_path):
    name = "jetson-orin-nx, JetPack 6"
    volt, _ = boards.rail(name, "VDD_SOC")
    other, _ = boards.rail(name, "VDD_CPU_GPU_CV")
    changes = {volt.replace("_input", "_enable"): 0, other.replace("_input", "_label"): None}
    found = values(boards.write(name, tmp_path, changes))
    assert [key for key in found if key.startswith("power.")] == ["power.VDD_IN"]
