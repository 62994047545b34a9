"""ONNX Runtime on this machine's CPU, one thread.

The clock reads the processor time of the computing thread. On an idle machine it equals the wall time; on a busy one it
is still the cost of the network. With three other jobs on two cores, the medians of five rounds differed from those of
the next five by 17 % in wall time and by 4 % in processor time.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass

import numpy as np
from edgeprune_device import runtimes
from edgeprune_device.machine.environment import Environment
from edgeprune_device.runtimes import Session

from edgeprune.pruning.layers import Floats

#: Sessions open at once, because each session of a large network takes gigabytes.
_AT_ONCE = 12
_LEAST = 5


def clock() -> Ort:
    """The clock with its default rounds."""
    return Ort()


@dataclass(frozen=True)
class Ort:
    """A clock of ONNX Runtime.

    Attributes:
        rounds: The number of runs of each file.
        seconds: Limit of the processor time for all files together. After it no further round starts, but there are at
            least five rounds.
    """

    rounds: int = 20
    seconds: float = 90.0

    @property
    def description(self) -> str:
        """The runtime, its version and the processor, as text."""
        import onnxruntime

        return (
            f"onnxruntime {onnxruntime.__version__}, CPUExecutionProvider, 1 thread, processor time, "
            f"{Environment.read().cpu or 'unknown CPU'}"
        )

    def __call__(self, files: dict[str, bytes]) -> dict[str, float]:
        """Time the files. In each round every file runs once, in a new order.

        Args:
            files: Name -> ONNX file; the first is the unpruned network.

        Returns:
            Name -> milliseconds: the median over the rounds of the ratio of a file's time to the first file's time in
            the
                same round, times the median of the first file.
        """
        first, *others = files
        shares, alone = {first: 1.0}, []
        for start in range(0, len(others), _AT_ONCE) or [0]:
            names = [first, *others[start : start + _AT_ONCE]]
            with contextlib.ExitStack() as stack:
                one = runtimes.RuntimeSettings(threads=1)
                sessions = [stack.enter_context(runtimes.open(files[n], "ort", one)) for n in names]
                times = self._turns(sessions, self.seconds * len(names) / len(files))
            alone.append(times[:, 0])
            shares.update(zip(names, np.median(times / times[:, :1], axis=0).tolist()))
        whole = float(np.median(np.concatenate(alone)))
        return {name: share * whole for name, share in shares.items()}

    def _turns(self, sessions: list[Session], seconds: float) -> Floats:
        """(rounds, sessions) milliseconds."""
        rng = np.random.default_rng(0)
        sides = [side for side in sessions[0].input_shape[1:] if side is not None]
        x = rng.random((1, *sides), dtype=np.float32)
        for session in sessions:
            session.infer(x)
        rounds: list[Floats] = []
        while len(rounds) < self.rounds and (len(rounds) < _LEAST or np.sum(rounds) < 1e3 * seconds):
            times = np.empty(len(sessions))
            for i in rng.permutation(len(sessions)):
                before = time.thread_time_ns()
                sessions[i].infer(x)
                times[i] = (time.thread_time_ns() - before) / 1e6
            rounds.append(times)
        return np.array(rounds)
