import json

import pytest
from edgeprune_device import schema, strict_json
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.machine.preflight import Preflight
from edgeprune_device.reports.report import BenchReport
from fakes.reports import make_report, timing
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from ... import fuzz

KEY = SigningKey(b"r" * 32)
MEMORY = {f"{name}_bytes": None for name in ("total", "available", "swap_total", "swap_used")}
RAIL = {"idle_mw": 4000.0, "load_mw": 9000.0, "mj_per_frame_gross": 112.5, "mj_per_frame_net": 62.5, "samples": 50}
FLOWN = {
    "board": {
        "model": "NVIDIA Jetson Orin NX", "compatible": ["nvidia,p3767"], "serial": "1",
        "l4t": "36.4.3", "jetpack": "6.2",
    },
    "mode": "camera",
    "camera": {
        "fps": 30.0, "deadline_ms": 33.3, "arrived": 5, "dropped": 2, "late": 1, "processed": 2, "missed": 1,
        "age": timing(20, 40),
    },
    "drift": {"window_s": 60.0, "first_ms": 10.0, "last_ms": 12.0, "change": 0.2},
    "power": {"source": "VDD_IN, the whole module", "whole_module": True, **RAIL, "rails": {"VDD_IN": RAIL}},
    "thermal": {"gpu": {"start_c": 41.5, "end_c": 60.0, "max_c": 61.0}},
    "clocks": {"gpu": {"min_hz": 306_000_000, "mean_hz": 900_000_000, "max_hz": 918_000_000}},
    "parity": {"reference": "ort", "pictures": 4, "anchors": 9, "unmatched": 0, "box_px": 0.1, "score": 0.01},
    "throttling": {"events": {"oc1": 2, "oc2": None}, "states": {"cpu-throttle-alert": 0}},
}  # fmt: skip


@pytest.fixture
def report():
    return make_report()


@pytest.mark.parametrize("change", [{}, FLOWN])
def test_round_trip_and_schema(change):
    jsonschema = pytest.importorskip("jsonschema")
    report = make_report(**change).sign(KEY)
    data = json.loads(json.dumps(report.to_json()))
    jsonschema.validate(data, schema.load("report"))
    assert BenchReport.from_json(data) == report
    assert BenchReport.from_json(strict_json.loads(report.to_bytes(), "r")).to_bytes() == report.to_bytes()


def test_signature_covers_every_field(report):
    signed = report.sign(KEY)
    again = BenchReport.from_json(json.loads(strict_json.pretty(signed.to_json())))
    assert bytes(again.verify()) == bytes(KEY.verify_key)
    data = signed.to_json()
    for key, value in {"fps_end_to_end": 81.0, "precision": "fp16", "warnings": [], "map50_95_delta": None}.items():
        with pytest.raises(SignatureError, match="invalid signature"):
            BenchReport.from_json({**data, key: value}).verify()
    with pytest.raises(SignatureError, match=r"r\.json: not signed"):
        report.verify("r.json")


def test_table_shows_every_figure(report):
    text = report.table()
    assert "80.0 end to end, 100.0 inference only" in text and "warning     busy" in text
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert rows["mAP50-95"][1:] == ["0.5000", "0.5200", "-0.0200"]
    assert rows["small mAP50-95"][2:] == ["not", "measured"] * 3
    assert rows["end to end"][3:7] == ["12.50", "-", "-", "-"]  # two samples give no p90
    assert rows["verdict"] == ["verdict", "degraded"] and "- only tried by hand" in text
    for what in ("power", "temp. C", "clocks MHz", "throttling", "drift"):
        assert rows[what][len(what.split()) :][:2] == ["not", "measured"]
    assert "car" not in rows and max(map(len, text.splitlines())) <= 120


def test_table_of_a_run_with_all_sensors():
    text = make_report(**FLOWN).table()
    assert "NVIDIA Jetson Orin NX, L4T 36.4.3, JetPack 6.2" in text
    power = "9.00 W under load, idle 4.00 W; 112.5 mJ per frame, 62.5 net (VDD_IN, the whole module; VDD_IN 9.00 W)"
    assert power in text
    assert "gpu 42 -> 60, max 61" in text and "gpu 900 (306 to 918)" in text
    assert "oc1 2 (2 indicators watched)" in text
    assert (
        "30 fps: 5 frames arrived, 1 late from the source, 2 processed, 2 dropped; 1 results later than 33.3 ms" in text
    )
    assert "+20.0%: median frame 10.00 -> 12.00 ms between the first and the last 60 s" in text
    assert "age of a result" in text and max(map(len, text.splitlines())) <= 120


def test_rails_are_shown_even_without_a_sensor_of_the_total():
    whole = {key: None for key in RAIL}
    power = {"source": "rails alone", "whole_module": False, **whole, "samples": 0, "rails": {"VDD_GPU": RAIL}}
    assert "power       not measured as a whole (rails alone; VDD_GPU 9.00 W)" in make_report(power=power).table()


def test_csv_has_one_line_per_frame():
    lines = make_report(**FLOWN).csv().splitlines()
    assert lines == [
        "begin_s,infer_ms,end_to_end_ms,age_ms",
        "0.000000,10.000000,12.500000,20.000000",
        "0.012500,11.000000,12.500000,40.000000",
    ]


@pytest.mark.parametrize(
    "change, word",
    [
        ({"schema_version": 1}, "unknown schema_version"),
        ({"stages": {}}, "end_to_end"),
        ({"fps_end_to_end": -1}, "at least 0"),
        ({"precision": "fp8"}, "fp8"),
        ({"accuracy": {}}, "missing"),
        ({"warnings": ["a\x1b[2J"]}, "warnings"),
        ({"device": {"hostname": "\x1b[2J", "serial": None, "key_fingerprint": "x"}}, "hostname"),
        ({"clock": {"boot_id": "../../etc", "boottime_s": 1, "synchronized": None}}, "boot_id"),
        ({"verdict": {"state": "fine", "reasons": []}}, "fine"),
        ({"signature": {"key": "0", "value": "0"}}, "signature"),
    ],
)
def test_malformed_report_is_refused(report, change, word):
    with pytest.raises(InputError, match=word):
        BenchReport.from_json({**report.to_json(), **change}, "r.json")


@pytest.mark.parametrize("key", schema.load("report")["required"])
def test_every_required_field_is_required(report, key):
    data = report.to_json()
    del data[key]
    with pytest.raises(InputError, match=key):
        BenchReport.from_json(data)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value, at=()):
    """Every path into a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*at, key))


def changed(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


WHOLE = json.loads(json.dumps(make_report(**FLOWN).sign(KEY).to_json()))
PLACES = sorted(places(WHOLE), key=str)


def leaf(path):
    value = WHOLE
    for key in path:
        value = value[key]
    return value


ESCAPE = "\x1b[2J"
DRESSED = [(path, ESCAPE) for path in PLACES if leaf(path) is None or isinstance(leaf(path), str)]
# An unknown name with the value of a neighbour, so that only the name is wrong.
DRESSED += [
    (path, {**leaf(path), ESCAPE: next(iter(leaf(path).values()))})
    for path in PLACES
    if leaf(path) and isinstance(leaf(path), dict)
]


@pytest.mark.parametrize("path, new", [*DRESSED, *((path, None) for path in PLACES)])
def test_untrusted_strings_do_not_move_the_cursor_and_missing_values_are_not_bugs(path, new):
    try:
        report = BenchReport.from_json(changed(WHOLE, path, new), "r.json")
    except InputError:
        return
    assert "\x1b" not in report.table() + report.csv()


def test_report_of_a_machine_with_a_thousand_cores_is_valid():
    names = [f"cpu{i}" for i in range(1000)]
    clock = {"cur_hz": 10**9, "min_hz": 10**9, "max_hz": 10**9, "governor": "performance", "locked": True}
    series = {
        "interval_s": 0.2, "t_ns": [1], "read_errors": {f"clock.{name}": 1 for name in names},
        "channels": {f"clock.{name}": {"kind": "clock", "unit": "Hz", "values": [None]} for name in names},
        "round_ms": {"mean": 1.0, "max": 1.0}, "cpu_share": None,
    }  # fmt: skip
    report = make_report(
        preflight={**Preflight(memory=MEMORY, clocks={name: clock for name in names}).to_json()},
        clocks={name: {"min_hz": 1, "mean_hz": 1, "max_hz": 1} for name in names},
        series=series,
    )
    assert BenchReport.from_json(json.loads(json.dumps(report.to_json()))) == report


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_untrusted_report_is_refused_in_one_line_or_can_be_shown(path, new):
    try:
        report = BenchReport.from_json(changed(WHOLE, path, new), "r.json")
    except InputError as error:
        assert "\n" not in str(error) and str(error).startswith("r.json: ")
        return
    text = report.table()
    assert "\x1b" not in text and report.csv()
    if report.to_json() != WHOLE:
        with pytest.raises(SignatureError):
            report.verify()


@fuzz.counts(300, 20_000)
def test_any_report_is_read_or_refused_in_one_line(count):
    good = make_report().sign(SigningKey(b"k" * 32))

    def attempt(mutant):
        report = BenchReport.from_bytes(mutant, "x")
        report.verify("x")
        report.table(), report.csv()

    result = fuzz.run(attempt, fuzz.of_json(good.to_json(), count))
    assert result["accepted"] and result["refused"] > count // 2


@fuzz.counts(300, 20_000)
def test_any_report_of_a_hostile_device_is_shown_or_refused(count):
    """Signed: only the reading stands between its content and the table."""
    good = make_report().to_json()

    def attempt(mutant):
        report = BenchReport.from_bytes(mutant, "x")
        report.table(), report.csv(), report.to_bytes()

    result = fuzz.run(attempt, fuzz.of_json(good, count, seed=1))
    assert result["accepted"] > count // 20 and result["refused"] > count // 4
