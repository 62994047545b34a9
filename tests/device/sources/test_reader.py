import threading
import time

import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.sources.reader import Reader

from .clips import soon


def test_reader_waits_for_its_consumer_or_drops_items():
    def numbers():
        yield from range(100)
        raise InputError("the end")

    waiting = Reader(numbers(), capacity=3)
    assert [waiting.take(5) for _ in range(100)] == list(range(100)) and waiting.dropped == 0
    with pytest.raises(InputError, match="the end"):
        waiting.take(5)
    newest = Reader(numbers(), capacity=1, newest=True)
    assert soon(lambda: newest.arrived == 100) and newest.dropped == 99
    assert newest.peek(5) == newest.take(5) == 99
    for _ in range(2):
        with pytest.raises(InputError, match="the end"):
            newest.take(5)


def test_closed_reader_ends_its_thread_and_its_iterator():
    ended = threading.Event()

    def numbers():
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            ended.set()

    before = threading.active_count()
    reader = Reader(numbers(), capacity=2)
    assert reader.take(5) == 0
    reader.close()
    assert ended.wait(5) and soon(lambda: threading.active_count() <= before)


def test_reader_times_out_after_the_given_time():
    go_on = threading.Event()

    def stuck():
        go_on.wait()
        yield 1

    reader = Reader(stuck(), capacity=1)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        reader.take(0.2)
    assert time.monotonic() - began >= 0.2
    go_on.set()
    assert reader.take(5) == 1
