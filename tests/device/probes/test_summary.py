"""Tests of figures from samples, with cases that can be calculated by hand."""

import pytest
from edgeprune_device.probes import summary
from hypothesis import given
from hypothesis import strategies as st

from .made_series import S, fits, series, steps

IDLE, LOAD = (0, 10 * S), (10 * S, 20 * S)


def test_power_of_the_whole_module_gross_and_net():
    power = summary.power(
        series(power__VDD_IN=steps(5000, 9000), power__VDD_SOC=steps(1000, 1500)), (0, 9 * S), LOAD, frames=300
    )
    assert power["source"] == "VDD_IN, the whole module" and power["whole_module"] is True
    assert (power["idle_mw"], power["load_mw"], power["samples"]) == (5000, 9000, 11)
    assert power["mj_per_frame_gross"] == 300  # 9 W for 10 s in 300 frames
    assert power["mj_per_frame_net"] == pytest.approx(400 / 3, abs=1e-4)
    assert power["rails"]["VDD_SOC"]["mj_per_frame_gross"] == 50
    assert power["rails"]["VDD_IN"]["load_mw"] == 9000 and fits("power", power)


def test_power_as_a_sum_of_rails_is_described_and_counts_memory_once():
    power = summary.power(
        series(
            power__VDD_GPU_SOC=steps(3000, 8000),
            power__VDD_CPU_CV=steps(500, 1000),
            power__VIN_SYS_5V0=steps(4500, 5000),
            power__VDDQ_VDD2_1V8AO=steps(400, 900),
        ),
        (0, 9 * S),
        LOAD,
        frames=100,
    )
    assert (power["idle_mw"], power["load_mw"], power["whole_module"]) == (8000, 14000, False)
    assert power["source"].startswith("sum of rails VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0 (")
    assert power["rails"]["VDDQ_VDD2_1V8AO"]["load_mw"] == 900 and fits("power", power)


def test_sum_needs_all_of_its_rails():
    rails = {"power__VDD_GPU_SOC": steps(3000, 8000), "power__VDD_CPU_CV": [None] * 31}
    power = summary.power(series(**rails, power__VIN_SYS_5V0=steps(4500, 5000)), IDLE, LOAD, 100)
    assert power["load_mw"] is None and power["mj_per_frame_gross"] is None and power["samples"] == 0
    assert power["rails"]["VDD_GPU_SOC"]["load_mw"] == 8000 and power["rails"]["VDD_CPU_CV"]["load_mw"] is None
    assert fits("power", power)


def test_unknown_rails_are_not_added():
    power = summary.power(series(power__MY_12V=steps(1, 2), power__MY_5V=steps(1, 2)), IDLE, LOAD, 10)
    assert power["load_mw"] is None and "separate rails" in power["source"] and power["rails"]["MY_5V"]["load_mw"] == 2


@pytest.mark.parametrize("idle", [None, (25 * S, 28 * S), (40 * S, 50 * S)])
def test_too_few_idle_samples_give_gross_but_no_net_energy(idle):
    power = summary.power(series(power__VDD_IN=steps(5000, 9000)), idle, LOAD, 300)
    assert power["mj_per_frame_gross"] == 300 and power["mj_per_frame_net"] is None and power["idle_mw"] is None


def test_fewer_than_five_samples_are_not_measured():
    four = [None] * 10 + [9000, None, 9000, None, None, 9000, None, None, None, 9000] + [None] * 11
    assert summary.power(series(power__VDD_IN=four), IDLE, LOAD, 300) is None
    five = [*four[:12], 9000, 9000, *four[14:]]
    assert summary.power(series(power__VDD_IN=five), IDLE, LOAD, 300)["samples"] == 5


def test_samples_of_a_part_of_the_window_are_not_enough():
    early = [None] * 10 + [9000] * 5 + [None] * 16
    assert summary.power(series(power__VDD_IN=early), IDLE, LOAD, 300) is None


def test_samples_at_uneven_times_are_weighted():
    times = [10 * S + t for t in (0, S // 10, 2 * S // 10, 3 * S // 10, 4 * S // 10, 5 * S, 10 * S)]
    power = summary.power(series(times, power__VDD_IN=[2000] * 5 + [1000, 1000]), None, LOAD, 10)
    # 2 W for 0.4 s, falling to 1 W until 5 s, then 1 W
    assert power["load_mw"] == pytest.approx((2 * 0.4 + 1.5 * 4.6 + 1 * 5) / 10 * 1000, abs=0.06)


def test_energy_per_frame_without_frames_is_none():
    power = summary.power(series(power__VDD_IN=steps(5000, 9000)), IDLE, LOAD, 0)
    assert power["load_mw"] == 9000 and power["mj_per_frame_gross"] is None and power["mj_per_frame_net"] is None


def test_load_below_idle_is_reported_unchanged():
    power = summary.power(series(power__VDD_IN=steps(5000, 4000)), (0, 9 * S), LOAD, 100)
    assert power["mj_per_frame_net"] == -100 and fits("power", power)


def test_temperatures_at_start_end_and_maximum():
    rising = [40.0] * 10 + [41.0, 45.5, 52.0, 51.0, 50.0, 50.0, 50.0, 50.0, 50.0, 50.0, 49.5] + [60.0] * 10
    thermal = summary.thermal(series(temperature__tj=rising, temperature__cv0=[None] * 31), LOAD)
    assert thermal == {"tj": {"start_c": 41.0, "end_c": 49.5, "max_c": 52.0}} and fits("thermal", thermal)


def test_clocks_have_minimum_mean_and_maximum():
    clocks = summary.clocks(series(clock__gpu=steps(3e8, 9e8)), LOAD)
    assert clocks == {"gpu": {"min_hz": 9e8, "mean_hz": 9e8, "max_hz": 9e8}} and fits("clocks", clocks)


def test_events_are_differences_and_states_are_maxima():
    oc = [*range(7, 17), *range(17, 28), *[99] * 10]  # one more each second
    alert = [1] * 10 + [0] * 5 + [2] + [0] * 15
    throttling = summary.throttling(series(event__oc3=oc, event__oc1=[4] * 31, throttle__tj=alert), LOAD)
    assert throttling == {"events": {"oc3": 11, "oc1": 0}, "states": {"tj": 2}} and fits("throttling", throttling)


def test_counter_that_was_reset_or_has_no_value_is_unknown():
    reset = [5] * 12 + [0] * 19
    throttling = summary.throttling(series(event__oc1=reset, event__oc2=[None] * 31, throttle__tj=[None] * 31), LOAD)
    assert throttling == {"events": {"oc1": None, "oc2": None}, "states": {"tj": None}}
    assert fits("throttling", throttling)


def test_event_before_the_first_sample_of_a_window_counts():
    throttling = summary.throttling(series(event__oc2=[0] * 10 + [1] * 21), (int(9.5 * S), 20 * S))
    assert throttling["events"] == {"oc2": 1}


@pytest.mark.parametrize("empty", [None, series(), series([], power__VDD_IN=[])])
def test_empty_series_is_not_measured(empty):
    assert summary.power(empty, IDLE, LOAD, 1) is None and summary.thermal(empty, LOAD) is None
    assert summary.clocks(empty, LOAD) is None and summary.throttling(empty, LOAD) is None


@pytest.mark.parametrize("load", [(20 * S, 10 * S), (10 * S + 1, 10 * S + 1), (100 * S, 110 * S), (-5 * S, -1 * S)])
def test_window_without_samples_is_not_measured(load):
    full = series(power__VDD_IN=steps(5000, 9000), temperature__tj=[1.0] * 31, event__oc1=[1] * 31)
    assert summary.power(full, IDLE, load, 10) is None and summary.thermal(full, load) is None
    assert summary.throttling(full, load)["events"] == {"oc1": None}


VALUE = st.none() | st.integers(0, 300000)


@given(
    st.lists(st.integers(0, 40 * S), max_size=40, unique=True).map(sorted),
    st.data(),
    st.tuples(st.integers(0, 40 * S), st.integers(0, 40 * S)),
)
def test_mean_lies_between_its_samples(times, data, window):
    values = data.draw(st.lists(VALUE, min_size=len(times), max_size=len(times)))
    power = summary.power(series(times, power__VDD_IN=values), None, window, 10)
    inside = [v for t, v in zip(times, values) if v is not None and window[0] <= t <= window[1]]
    if power is None:
        return
    assert len(inside) >= 5 and min(inside) - 0.06 <= power["load_mw"] <= max(inside) + 0.06
