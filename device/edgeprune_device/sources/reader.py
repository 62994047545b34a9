"""A thread that runs an iterator ahead of its consumer.

The module does not depend on frames.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Deque, Generator, Generic, Optional, TypeVar

__all__ = ["Reader"]

_JOIN_S = 2.0

Item = TypeVar("Item")


class Reader(Generic[Item]):
    """Reads items from an endless iterator, which may raise: Reader(images, capacity=4).

    Args:
        items: The iterator, a generator.
        capacity: Maximum number of waiting items.
        newest: When `capacity` items wait, drop the oldest for a new one; otherwise the iterator waits.

    Attributes:
        arrived: Number of items that arrived.
        dropped: Number of items that were dropped before they were taken.
    """

    def __init__(self, items: Generator[Item, None, None], capacity: int, newest: bool = False):
        self.arrived = 0
        self.dropped = 0
        self._items, self._capacity, self._newest = items, capacity, newest
        self._ready: Deque[Item] = deque()
        self._failure: Optional[BaseException] = None
        self._closed = False
        self._changed = threading.Condition()
        # A daemon thread: a hanging decoder must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="edgeprune-reader", daemon=True)
        self._thread.start()

    def take(self, timeout_s: float) -> Item:
        """Take the oldest waiting item, or the next one.

        After the last item, the error of the iterator is raised.

        Raises:
            TimeoutError: No item arrived within `timeout_s`.
        """
        with self._changed:
            self._wait(timeout_s)
            self._changed.notify_all()
            return self._ready.popleft()

    def peek(self, timeout_s: float) -> Item:
        """Return the item that `take` would return, without removing it."""
        with self._changed:
            self._wait(timeout_s)
            return self._ready[0]

    def close(self) -> None:
        """Let the thread close the iterator, at the latest at the iterator's next item."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_JOIN_S)

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not self._ready:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise RuntimeError("closed")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._changed.wait(left)

    def _run(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except BaseException as error:  # the consumer must receive any error
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        finally:
            self._items.close()

    def _put(self, item: Item) -> bool:
        with self._changed:
            while not self._newest and len(self._ready) >= self._capacity and not self._closed:
                self._changed.wait()
            if len(self._ready) >= self._capacity:
                self._ready.popleft()
                self.dropped += 1
            self._ready.append(item)
            self.arrived += 1
            self._changed.notify_all()
            return not self._closed
