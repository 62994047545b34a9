import json
from dataclasses import replace

import pytest
from edgeprune_device.machine.environment import Environment, parse_cpuinfo, parse_key_values, parse_meminfo

X86 = """processor	: 0
model name	: AMD EPYC 7763
flags		: fpu sse avx2 avx512_vnni

processor	: 1
model name	: something else
"""
ARM = """processor	: 0
Features	: fp asimd asimddp i8mm
Model		: Raspberry Pi 5
"""


def test_cpuinfo_is_parsed():
    assert parse_cpuinfo(X86) == ("AMD EPYC 7763", ("avx2", "avx512_vnni"))
    assert parse_cpuinfo(ARM) == ("Raspberry Pi 5", ("asimddp", "i8mm"))
    assert parse_cpuinfo("") == (None, ())


def test_meminfo_is_parsed():
    assert parse_meminfo("MemTotal:       16 kB\nMemFree: 1 kB\n") == 16384
    assert parse_meminfo("") is None


def test_os_release_is_parsed():
    text = "# c\nNAME=Ubuntu\nPRETTY_NAME=\"Ubuntu 22.04\"\nEMPTY=''\n"
    assert parse_key_values(text) == {"NAME": "Ubuntu", "PRETTY_NAME": "Ubuntu 22.04", "EMPTY": ""}


def test_environment_of_this_machine_is_read():
    env = Environment.read()
    assert env.cores >= 1 and env.kernel and env.python.startswith("3.") and env.packages["numpy"]
    assert Environment.from_json(json.loads(json.dumps(env.to_json()))) == env


def test_governor_gives_a_warning():
    env = replace(Environment.read(), governor=None)
    assert env.warnings() == []
    assert "powersave" in replace(env, governor="powersave").warnings()[0]
    assert replace(env, governor="performance").warnings() == []


@pytest.mark.parametrize(
    "machine, features, saturates",
    [("x86_64", ("avx2",), True), ("x86_64", ("avx2", "avx_vnni"), False), ("AMD64", (), True), ("aarch64", (), False)],
)
def test_cpus_without_vnni_saturate(machine, features, saturates):
    assert replace(Environment.read(), machine=machine, cpu_features=features).saturates is saturates
