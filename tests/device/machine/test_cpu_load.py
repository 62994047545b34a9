import os
import subprocess
import sys
import time

import pytest
from edgeprune_device.machine import cpu_load
from hypothesis import given
from hypothesis import strategies as st

STAT = "cpu  1036828 668792 111181 1887922 14295 5 2471 1247 99 99\ncpu0 1 2\n"


def test_kernel_files_are_parsed():
    total, busy = cpu_load.parse_stat(STAT)
    assert total == 1036828 + 668792 + 111181 + 1887922 + 14295 + 5 + 2471 + 1247 and busy == total - 1887922 - 14295
    line = "812 (tmux: (x) y) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1"
    assert cpu_load.parse_process(line) == (1, 127)


@given(st.text())
def test_invalid_content_is_refused(text):
    for parse in (cpu_load.parse_stat, cpu_load.parse_process):
        try:
            numbers = parse(text)
        except ValueError:
            continue
        assert all(isinstance(value, int) for value in numbers)


def burn(seconds):
    return [sys.executable, "-c", f"import time; e = time.time() + {seconds}\nwhile time.time() < e: pass"]


def test_load_of_this_process_and_its_children_is_not_counted():
    before, counted = cpu_load.read(), sum(os.times()[:4])
    child = subprocess.Popen(burn(0.6))
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
    child.wait()
    after, counted = cpu_load.read(), sum(os.times()[:4]) - counted
    own = after.own - before.own
    assert own == pytest.approx(counted, abs=0.06) and own > 0.02  # the amount depends on the machine
    assert after.busy - before.busy >= own - 0.1 and cpu_load.others(before, after) is not None


def test_load_of_other_programs_is_counted():
    # Started by a process that ends at once, so it is not a descendant of this one.
    subprocess.run(["sh", "-c", '"$@" &', "sh", *burn(1.2)], check=True)
    before = cpu_load.read()
    time.sleep(0.6)
    share = cpu_load.others(before, cpu_load.read())
    assert share > 0.1 / os.cpu_count()


def test_unknown_load_is_none(tmp_path):
    assert cpu_load.read(tmp_path) is None
    now = cpu_load.read()
    assert cpu_load.others(None, now) is None and cpu_load.others(now, now) is None
    assert cpu_load.others(cpu_load.CpuTimes(0, 0, 0), cpu_load.CpuTimes(100, 50, 20)) == pytest.approx(0.3)
    assert cpu_load.others(cpu_load.CpuTimes(0, 0, 0), cpu_load.CpuTimes(100, 50, 60)) == 0
