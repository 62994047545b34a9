"""Tests of tegrastats: the variants that NVIDIA's boards print (shared/RIG.md), and garbage."""

import sys
import time

import pytest
from edgeprune_device import probes
from edgeprune_device.probes import tegrastats
from hypothesis import given
from hypothesis import strategies as st

NX_ROOT = (
    "10-08-2026 04:38:21 RAM 1343/7620MB (lfb 157x4MB) SWAP 165/3810MB (cached 3MB) "
    "CPU [0%@1497,0%@729,0%@729,0%@729,0%@729,0%@729] EMC_FREQ 15%@204 GR3D_FREQ 0%@[305] NVDEC off NVJPG off VIC off "
    "OFA off APE 200 cpu@48.562C soc2@46.593C soc0@48.625C gpu@49.625C tj@49.312C soc1@47.937C VDD_IN 5251mW/8535mW "
    "VDD_CPU_GPU_CV 512mW/1944mW VDD_SOC 2720mW/3659mW"
)
NX_USER = (
    "10-08-2026 04:38:21 RAM 1343/7620MB (lfb 157x4MB) SWAP 165/3810MB (cached 3MB) CPU [12%@1497,off,off,0%@729] "
    "GR3D_FREQ 47% cpu@48.562C gpu@49.625C tj@49.312C VDD_IN 5251mW/8535mW VDD_CPU_GPU_CV 512mW/1944mW"
)
AGX = (
    "10-08-2026 04:38:21 RAM 3000/62800MB (lfb 4x4MB) SWAP 0/31400MB (cached 0MB) CPU [1%@729,off,off,off] "
    "GR3D_FREQ 0%@[0,0] cpu@46.5C tboard@37.5C soc2@44C tdiode@39.75C soc0@45C tj@46.5C soc1@44.1C "
    "VDD_GPU_SOC 3362mW/3362mW VDD_CPU_CV 480mW/480mW VIN_SYS_5V0 4869mW/4869mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 397mW/397mW NC 0mW/0mW"
)
JETPACK5 = (
    "RAM 3000/30536MB (lfb 5x4MB) SWAP 0/15268MB (cached 0MB) CPU [0%@729,0%@729] EMC_FREQ 0%@2133 GR3D_FREQ 0%@0 "
    "CV0@-256C CPU@48.5C Tboard@38C SOC2@44.312C Tdiode@38.75C SOC0@45.468C CV1@-256C GPU@-256C tj@48.5C SOC1@45.6C "
    "CV2@-256C VDD_GPU_SOC 2408mW/2408mW VDD_CPU_CV 401mW/401mW VIN_SYS_5V0 3224mW/3224mW NC 0mW/0mW"
)
JETPACK7 = (
    "10-08-2026 04:38:21 RAM 4000/125772MB (lfb 1x4MB) CPU [0%@972,0%@972] cpu@52.9C/52.9C tj@53.1C/53.1C "
    "soc012@52.5C/52.5C VDD_GPU 0mW/0mW/0mW VDD_CPU_SOC_MSS 6514mW/6600mW/6514mW VIN_SYS_5V0 6520mW/6520mW/6520mW "
    "VIN 23104mW/23000mW/23104mW"
)


@pytest.mark.parametrize(
    ("line", "power", "temperature", "load"),
    [
        (
            NX_ROOT,
            {"VDD_IN": 5251, "VDD_CPU_GPU_CV": 512, "VDD_SOC": 2720},
            {"cpu": 48.562, "soc2": 46.593, "soc0": 48.625, "gpu": 49.625, "tj": 49.312, "soc1": 47.937},
            0.0,
        ),
        (NX_USER, {"VDD_IN": 5251, "VDD_CPU_GPU_CV": 512}, {"cpu": 48.562, "gpu": 49.625, "tj": 49.312}, 0.47),
        (
            AGX,
            {"VDD_GPU_SOC": 3362, "VDD_CPU_CV": 480, "VIN_SYS_5V0": 4869, "VDDQ_VDD2_1V8AO": 397},
            {"cpu": 46.5, "tboard": 37.5, "soc2": 44, "tdiode": 39.75, "soc0": 45, "tj": 46.5, "soc1": 44.1},
            0.0,
        ),
        (
            JETPACK5,
            {"VDD_GPU_SOC": 2408, "VDD_CPU_CV": 401, "VIN_SYS_5V0": 3224},
            {"cpu": 48.5, "tboard": 38, "soc2": 44.312, "tdiode": 38.75, "soc0": 45.468, "tj": 48.5, "soc1": 45.6},
            0.0,
        ),
        (
            JETPACK7,
            {"VDD_GPU": 0, "VDD_CPU_SOC_MSS": 6514, "VIN_SYS_5V0": 6520, "VIN": 23104},
            {"cpu": 52.9, "tj": 53.1, "soc012": 52.5},
            None,
        ),
    ],
    ids=["NX as root", "NX as a user", "AGX", "JetPack 5", "JetPack 7"],
)
def test_every_variant_is_parsed(line, power, temperature, load):
    expected = {f"power.{name}": value for name, value in power.items()}
    expected.update({f"temperature.{name}": value for name, value in temperature.items()})
    expected.update({} if load is None else {"load.gpu": load})
    assert tegrastats.parse(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "VDD_IN 5251mW/8535mW",  # the end of a line without its beginning
        NX_ROOT + " " + NX_ROOT,  # two lines in one
        NX_ROOT + " VDD_IN 1mW/1mW",
        "tegrastats: command not found",
        "RAM lots VDD_IN 5251mW/8535mW",
    ],
)
def test_line_that_is_not_from_tegrastats_gives_no_value(line):
    assert tegrastats.parse(line) == {}


@pytest.mark.parametrize(
    "word",
    ["VDD_IN 999999mW/1mW", "VDD_IN 5251", "VDD_IN -5mW/1mW", "VDD_IN 0mW/0mW", "VDD_IN 5.2mW/1mW", "VDD_IN ٥mW/1mW"],
)
def test_impossible_power_is_omitted(word):
    assert tegrastats.parse(f"RAM 1/2MB {word} VDD_SOC 10mW/10mW GR3D_FREQ 101% cpu@900C") == {"power.VDD_SOC": 10}


@given(st.integers(0, len(NX_ROOT)))
def test_truncated_line_gives_only_correct_values(length):
    whole, cut = tegrastats.parse(NX_ROOT), tegrastats.parse(NX_ROOT[:length])
    assert all(whole[key] == value for key, value in cut.items())


@given(st.integers(0, len(AGX)), st.text(max_size=10))
def test_text_inserted_into_a_line_gives_no_impossible_figure(place, text):
    for key, value in tegrastats.parse(AGX[:place] + text + AGX[place:]).items():
        lowest, highest = {"power": (0, 300000), "temperature": (-60, 150), "load": (0, 1)}[key.split(".")[0]]
        assert lowest <= value <= highest


@given(st.text(max_size=200) | st.lists(st.sampled_from([*NX_ROOT.split(), *JETPACK5.split()])).map(" ".join))
def test_garbage_raises_no_error_and_gives_no_value(text):
    for value in tegrastats.parse(text).values():
        assert -60 <= value <= 300000


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake(body): a fake tegrastats in Python, alone on PATH; the file `calls` logs its arguments."""

    def write(body):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "tegrastats"
        start = f"open({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        pid = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        program.write_text(f"#!{sys.executable}\nimport os, sys, time\n{start}{pid}{body}")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return write


REPEAT = f"""
n = 5000
while True:
    print({NX_ROOT!r}.replace("5251", str(n)), flush=True)
    n += 100
    time.sleep(0.05)
"""


def gone(pid):
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat", "rb") as stream:
                if stream.read().rsplit(b")", 1)[1].split()[0] == b"Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_tegrastats_is_used_if_sysfs_has_no_power(tmp_path, fake):
    fake(REPEAT)
    channels = {channel.key: channel for channel in probes.discover(tmp_path / "nothing", 0.2)}
    assert set(channels) == set(tegrastats.parse(NX_ROOT)) and channels["power.VDD_IN"].unit == "mW"
    channels["power.VDD_IN"].read()
    time.sleep(1.0)
    first = channels["power.VDD_IN"].read()
    assert first >= 5000 and channels["temperature.tj"].read() == 49.312 and channels["load.gpu"].read() == 0
    time.sleep(0.2)
    assert channels["power.VDD_IN"].read() > first
    assert (tmp_path / "calls").read_text().split("\n")[0] == "--interval 200"
    pid = int((tmp_path / "pid").read_text())
    del channels
    assert gone(pid)  # the program ends with its channels


def test_tegrastats_is_not_used_if_sysfs_has_power(tmp_path, fake):
    import sysfs as boards

    fake(REPEAT)
    probes.discover(boards.write("jetson-orin-nx, JetPack 6", tmp_path / "root"))
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("body", ["", "sys.exit(3)\n", "print('usage: …')\n", "import os\nos.close(1)\n"])
def test_failing_tegrastats_gives_no_channel(tmp_path, fake, body):
    fake(body)
    assert probes.discover(tmp_path / "nothing") == []


def test_silent_tegrastats_does_not_block(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(tegrastats, "_FIRST_LINE_S", 0.5)
    fake("time.sleep(60)\n")
    began = time.monotonic()
    assert probes.discover(tmp_path / "nothing") == [] and time.monotonic() - began < 5


def test_outdated_value_is_none(tmp_path, fake):
    fake(f"print({NX_ROOT!r}, flush=True)\ntime.sleep(60)\n")
    channel = next(c for c in probes.discover(tmp_path / "nothing", 0.1) if c.name == "VDD_IN")
    channel.read()
    time.sleep(0.7)
    assert channel.read() == 5251
    time.sleep(2.1)
    assert channel.read() is None


def test_monitor_runs_tegrastats_and_ends_it(tmp_path, fake):
    fake(REPEAT)
    with probes.Monitor(tmp_path / "nothing", 0.1) as monitor:
        time.sleep(1.5)
    points = monitor.series().points("power", "VDD_IN")
    assert len(points) > 5 and points[-1][1] > points[0][1]
    assert gone(int((tmp_path / "pid").read_text()))
