"""Mutation fuzzing: a reader gets many damaged inputs, and must accept each or refuse it in one line.

    @fuzz.counts(300, 30_000)
    def test_any_ticket_is_read_or_refused_in_one_line(count, tmp_path):
        def attempt(mutant):
            (tmp_path / "ticket.json").write_bytes(mutant)
            tickets.read(tmp_path / "ticket.json")

        result = fuzz.run(attempt, fuzz.of_json(GOOD, count))
        assert result["accepted"] and result["refused"]

The attempts run in a forked process. `run` fails at the first mutant that raises another error, kills the process,
takes too long or allocates too much, and prints the mutant. A seed and a number give the same mutant on every machine.
"""

from __future__ import annotations

import copy
import json
import mmap
import os
import random
import resource
import signal
import struct
import time
import traceback
from collections import Counter
from contextlib import suppress

import pytest
from edgeprune_device.errors import EdgepruneError

#: Limits of one attempt.
LIMIT_S, MOST_BYTES = 10.0, 500 << 20

_NUMBERS = [
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    4096,
    65535,
    65536,
    *(1 << n for n in (20, 30, 31, 32, 40, 53, 62, 63)),
]
_NUMBERS += [n - 1 for n in _NUMBERS[-8:]] + [(1 << 64) - 1]
_NAMES = [
    "", ".", "..", "/", "//", "../../etc/passwd", "/dev/zero", "/proc", "-rf", "--", "a\0b", "a\nb", "\x1b[2J",
    "\u202e\u2066gpj", "\ud800", "\ufeff", "ü" * 100, "x" * 300, "x/" * 3000, "%s%n", "$(id)", "`id`", "*", "~",
    "NaN", "1e999", "con", " ",
]  # fmt: skip
_VALUES = [
    None, True, False, -1, -(1 << 63), 0.5, -0.0, 1e-320, 1e308, 10**31, {}, [], [[]], [None], {"": None}, "0" * 70_000,
    [0] * 20_000, *_NUMBERS, *_NAMES,
]  # fmt: skip
#: Text that a JSON encoder never writes, used in place of a value.
_TEXTS = [
    b"NaN", b"-Infinity", b"1e999", b"-0", b"01", b"9" * 5000, b"[" * 5000, b"[" * 60 + b"]" * 60, b'"\\ud800"',
    b'"\xff"', b'{"a": 1, "a": 2}', b'"\x00"', b"", b"'x'", b"{", b"// x",
]  # fmt: skip


def counts(short, long):
    """Parametrize a test with `count`: a short run, and a long one that is marked slow."""
    return pytest.mark.parametrize(
        "count", [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.slow)]
    )


def of_bytes(data, count, seed=0, others=()):
    """Mutants of a binary file: `data` itself, then `count` variants with one to four changes each.

    Args:
        data: A valid file.
        count: Number of the mutants.
        seed: Seed of the changes.
        others: Other valid files, whose pieces are inserted.
    """
    yield data
    rng = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            rng.choice(_CHANGES)(mutant, rng, [data, *others])
        yield bytes(mutant)


def of_json(value, count, seed=0):
    """Mutants of a JSON file: `value` itself, then `count` variants with values, keys or text that no encoder writes.

    Args:
        value: A valid value.
        count: Number of the mutants.
        seed: Seed of the changes.
    """
    yield _dumped(value)
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.15:
            yield from list(of_bytes(_dumped(value), 1, rng.getrandbits(64)))[1:]
            continue
        mutant, texts = copy.deepcopy(value), []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            mutant = _changed(mutant, rng, texts)
        yield _with_texts(_dumped(mutant), texts)


def run(attempt, mutants, limit_s=LIMIT_S, most_bytes=MOST_BYTES, refusals=(EdgepruneError,)):
    """Call `attempt(mutant)` for each mutant, in a forked process.

    Args:
        attempt: Reads a mutant. It may raise a refusal of one printable line, and nothing else.
        mutants: The mutants.
        limit_s: Longest time of one attempt, s.
        most_bytes: The most memory that the attempts may allocate beyond this process's memory, bytes.
        refusals: The errors that are refusals.

    Returns:
        Counter with "accepted" and "refused".

    Raises:
        AssertionError: A mutant failed; the message contains the mutant and its number.
    """
    shared = mmap.mmap(-1, 1 << 20)  # <number of the mutant, accepted, refused, its length>, the mutant, the failure
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)  # processes of an attempt end with it
            _attempts(attempt, mutants, most_bytes, refusals, shared)
            code = 0
        except BaseException:
            _put(shared, _FAILURE_AT, traceback.format_exc()[-20_000:].encode("utf-8", "replace"))
        finally:
            os._exit(code)
    try:
        status = _watched(child, shared, limit_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    number, accepted, refused = _HEAD.unpack_from(shared)
    if status == 0:
        return Counter(accepted=accepted, refused=refused)
    mutant, failure = _got(shared, _MUTANT_AT), _got(shared, _FAILURE_AT).decode("utf-8", "replace")
    if status is None:
        failure = f"the attempt took more than {limit_s:g} s"
    elif os.WIFSIGNALED(status):
        failure = f"the process ended with {signal.Signals(os.WTERMSIG(status)).name}"
    raise AssertionError(f"mutant {number}: {mutant[:2000]!r}{' …' * (len(mutant) > 2000)}\n{failure}")


_HEAD = struct.Struct("<QQQ")
_MUTANT_AT, _FAILURE_AT = 64, 1 << 19


def _attempts(attempt, mutants, most_bytes, refusals, shared):
    accepted = refused = 0
    ceiling = _allocated() + most_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))
    for number, mutant in enumerate(mutants):
        _put(shared, _MUTANT_AT, mutant if isinstance(mutant, bytes) else repr(mutant).encode("utf-8", "replace"))
        _HEAD.pack_into(shared, 0, number, accepted, refused)
        try:
            attempt(mutant)
            accepted += 1
        except refusals as error:
            assert str(error).isprintable(), f"a refusal is one printable line: {str(error)!r}"
            assert len(str(error)) < 4000, f"a refusal is one short line: {len(str(error))} characters"
            refused += 1
    _HEAD.pack_into(shared, 0, number, accepted, refused)


def _watched(child, shared, limit_s):
    """The exit status of the child; None if one attempt took too long and the child was killed."""
    last, since = None, time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        number = _HEAD.unpack_from(shared)[0]
        if number != last:
            last, since = number, time.monotonic()
        elif time.monotonic() - since > limit_s:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.02)


def _allocated():
    """The memory that RLIMIT_DATA limits."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) << 10 for line in stream if line.startswith("VmData:"))


def _put(shared, at, data):
    data = data[: _FAILURE_AT - _MUTANT_AT - 8]
    shared[at : at + 8 + len(data)] = struct.pack("<Q", len(data)) + data


def _got(shared, at):
    length = struct.unpack_from("<Q", shared, at)[0]
    return shared[at + 8 : at + 8 + length]


# Changes of bytes


def _flip(mutant, rng, corpus):
    if mutant:
        mutant[rng.randrange(len(mutant))] ^= 1 << rng.randrange(8)


def _overwrite_byte(mutant, rng, corpus):
    if mutant:
        mutant[rng.randrange(len(mutant))] = rng.choice((0, 1, 0x2E, 0x2F, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _overwrite_number(mutant, rng, corpus):
    width = rng.choice((2, 4, 8))
    number = rng.choice(_NUMBERS) if rng.random() < 0.8 else rng.getrandbits(64)
    if len(mutant) >= width:
        at = rng.randrange(len(mutant) - width + 1)
        at -= at % width if rng.random() < 0.7 else 0  # most fields are aligned
        mutant[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, rng.choice(("little", "big")))


def _cut(mutant, rng, corpus):
    del mutant[rng.randrange(len(mutant) + 1) :]


def _remove(mutant, rng, corpus):
    at = rng.randrange(len(mutant) + 1)
    del mutant[at : at + _length(mutant, rng)]


def _repeat(mutant, rng, corpus):
    at = rng.randrange(len(mutant) + 1)
    mutant[at:at] = mutant[at : at + _length(mutant, rng)] * rng.choice((1, 1, 2, 100))


def _fill(mutant, rng, corpus):
    at = rng.randrange(len(mutant) + 1)
    length = len(mutant[at : at + _length(mutant, rng)])
    mutant[at : at + length] = bytes([rng.choice((0, 0xFF, rng.randrange(256)))]) * length


def _insert(mutant, rng, corpus):
    at = rng.randrange(len(mutant) + 1)
    mutant[at:at] = rng.choice(_NAMES).encode("utf-8", "surrogatepass")


def _splice(mutant, rng, corpus):
    other = rng.choice(corpus)
    begin, at = rng.randrange(len(other) + 1), rng.randrange(len(mutant) + 1)
    piece = other[begin : begin + _length(other, rng)]
    mutant[at : at + len(piece) if rng.random() < 0.7 else at] = piece


def _length(data, rng):
    return min(int(2 ** rng.uniform(0, 12)), len(data))


_CHANGES = (
    _flip, _flip, _overwrite_byte, _overwrite_number, _overwrite_number, _cut, _remove, _repeat, _fill, _insert,
    _splice,
)  # fmt: skip


# Changes of JSON


def _changed(value, rng, texts):
    """The value with one random change; `texts` receives the raw text that replaces a value."""
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return _hostile(rng, texts)
    holder, key = rng.choice(places)
    action = rng.randrange(6)
    if action == 0:
        del holder[key]
    elif action == 1 and isinstance(holder, dict):
        holder[rng.choice(_NAMES)] = holder[key] if rng.random() < 0.5 else _hostile(rng, texts)
    elif action == 2:
        other, name = rng.choice(places)
        if isinstance(other, dict) and name in other:
            holder[key] = copy.deepcopy(other[name])
    else:
        holder[key] = _hostile(rng, texts, holder[key])
    return value


def _hostile(rng, texts, like=None):
    kind = rng.random()
    if kind < 0.15:
        texts.append(rng.choice(_TEXTS))
        return f"@text{len(texts) - 1}@"
    if kind < 0.4 and isinstance(like, str) and like:
        at = rng.randrange(len(like) + 1)
        return like[:at] + rng.choice(_NAMES) + like[at + rng.randrange(2) :]
    if kind < 0.5 and type(like) in (int, float):
        return rng.choice((-like, like + 1, like * 1e300 if abs(like) < 1e8 else like, float(like), str(like)))
    return copy.deepcopy(rng.choice(_VALUES))


def _places(value):
    """(container, key or index) of every nested value."""
    if isinstance(value, (dict, list)):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(item)


def _dumped(value):
    return json.dumps(value).encode("ascii")


def _with_texts(data, texts):
    for number, text in enumerate(texts):
        data = data.replace(b'"@text%d@"' % number, text)
    return data
