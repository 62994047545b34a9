"""The helper of the mutation tests finds the faults that it is for."""

import json
import os
import signal
import time

import pytest
from edgeprune_device.errors import InputError

from tests import fuzz

GOOD = {"version": 1, "names": ["a", "b"], "inner": {"size": 3.5, "none": None}}


def read(mutant):
    """A reader without fault."""
    try:
        value = json.loads(mutant.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError("not JSON") from error
    if not isinstance(value, dict) or value.get("version") != 1:
        raise InputError("not version 1")


def test_a_reader_that_refuses_in_one_line_passes():
    result = fuzz.run(read, fuzz.of_json(GOOD, 400))
    assert sum(result.values()) == 401 and min(result["accepted"], result["refused"]) > 40


@pytest.mark.parametrize(
    "fault, words",
    [
        (lambda mutant: {}[mutant], "KeyError"),
        (lambda mutant: read(b"x" * (1 << 30)), "MemoryError"),
        (lambda mutant: time.sleep(60), "more than 1 s"),
        (lambda mutant: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
    ],
)
def test_a_fault_fails_with_its_mutant(fault, words):
    def attempt(mutant):
        return fault(mutant) if mutant == b"bad" else None

    with pytest.raises(AssertionError, match=rf"(?s)^mutant 2: b'bad'\n.*{words}"):
        fuzz.run(attempt, [b"good", b"fine", b"bad", b"good"], limit_s=1)


def test_a_refusal_of_two_lines_is_a_fault():
    def attempt(mutant):
        raise InputError("a\nb")

    with pytest.raises(AssertionError, match="one printable line"):
        fuzz.run(attempt, [b"x"])


def test_a_seed_gives_the_same_mutants_and_they_differ():
    data = bytes(range(256)) * 4
    for made, good in ((fuzz.of_bytes, data), (fuzz.of_json, GOOD)):
        mutants = list(made(good, 300, 5))
        assert mutants == list(made(good, 300, 5)) != list(made(good, 300, 6))
        assert len(set(mutants)) > 200
