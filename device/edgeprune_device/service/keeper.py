"""The release that runs: the current one while it works, else the newest good one.

- A release on trial has three starts to run well for the window. Else it is marked bad, and the newest good one takes
  over. A start counts from the moment before the model is loaded, except where the source then turns out to be missing.
- A release that does not verify is marked bad, too, but only where another one does verify: a missing trust store must
  not condemn them all.
- Where there is no release to fall back to, a release stays in spite of its failures.

Changes that cannot be written, because the disk is full or broken, are remembered until the service ends. The module
does not depend on processes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Dict, Optional, Tuple

from edgeprune_device.errors import EdgepruneError
from edgeprune_device.releases import Release, Releases

__all__ = ["MOST_STARTS", "Keeper"]

MOST_STARTS = 3


class Keeper:
    """Chooses the release to run.

    Args:
        releases: The releases.
        window_s: How long a release must run well, s; for messages.
        say: Called with a line of text, which it prints once.
    """

    def __init__(self, releases: Releases, window_s: float, say: Callable[[str], None]):
        self._releases, self._window_s, self._say = releases, window_s, say
        self._starts: Dict[str, int] = {}
        self._instead: Dict[Optional[str], Release] = {}

    def forget(self) -> None:
        """Forget the changes that could not be written, because the releases have been changed from outside."""
        self._starts.clear()
        self._instead.clear()

    def choose(self, last: Optional[str]) -> Tuple[Optional[Release], str]:
        """The release to start now.

        Args:
            last: Why the last start failed, or None.

        Returns:
            (the release, ""), or (None, why there is none).
        """
        try:
            release = self._releases.current()
        except EdgepruneError as error:
            other = self.fall_back(None, str(error))
            return other, "" if other else str(error)
        if release is None:
            why = f"{self._releases.root}: no release yet; edgeprune deploy brings one"
            self._say(why)
            return None, why
        if release.identity in self._instead:
            return self._instead[release.identity], ""
        why = ""
        if release.state == "bad":
            why = release.reason or "it is marked bad"
        elif release.state == "trial" and self._started(release) >= MOST_STARTS:
            because = f" ({last})" if last else ""
            why = f"{self._started(release)} starts, and never {self._window_s:g} s of frames{because}"
        return (self.fall_back(release, why) if why else None) or release, ""

    def fall_back(self, release: Optional[Release], why: str) -> Optional[Release]:
        """Mark a release bad and switch to the newest good release that verifies.

        Args:
            release: The release; None: `current` cannot be read.
            why: The reason, in one line.

        Returns:
            The release that is then in use; None: there is no other, and nothing changes.
        """
        identity = None if release is None else release.identity
        for other in self._releases.all():
            if other.state != "good" or other.identity == identity:
                continue
            try:
                self._releases.open(other)
            except EdgepruneError as error:
                self._say(f"release {other} cannot take over: {error}")
                continue
            try:
                with self._releases.state_locked():
                    now = None if release is None else self._releases.current()
                    if now is not None and (now.identity, now.state) != (identity, release.state):
                        return now  # an installation has switched meanwhile, or judged it
                    if not self._releases.folder(other).is_dir():
                        continue  # tidied away at this moment
                    # In this order: a release that is marked bad is never in use, even after a kill at any point.
                    self._releases.switch(other)
                    if now is not None:
                        self._releases.mark(now, "bad", why)
            except EdgepruneError as error:
                self._say(f"the fallback cannot be written down: {error}")
                self._instead[identity] = other
            self._say(f"falls back to release {other}: {f'{release} is bad, ' if release else ''}{why}")
            return other
        self._say(f"release {release or '?'} has no good one to fall back to: {why}")
        return None

    def count(self, release: Release, starts: int) -> None:
        """Add `starts` (1 or -1) to the starts of a release on trial; it is on the disk before this returns."""
        if release.state != "trial":
            return
        self._starts[release.identity] = max(self._started(release) + starts, 0)
        try:
            with self._releases.state_locked():
                now = self._releases.get(release.identity)
                if now.state == "trial" and starts > 0:
                    self._releases.started(now)
                elif now.state == "trial":
                    self._releases.write(replace(now, starts=max(now.starts + starts, 0)))
        except EdgepruneError as error:
            self._say(f"the start of release {release} cannot be written down: {error}")

    def confirm(self, release: Release) -> Release:
        """Mark a release that runs well as good, and return it with its new state."""
        try:
            with self._releases.state_locked():
                now = self._releases.current()
                if now is None or now.identity != release.identity:
                    return release  # an installation has switched meanwhile, and will signal it
                if now.state == "trial":
                    now = self._releases.confirm(now)
        except EdgepruneError as error:
            self._say(f"release {release} runs well, which cannot be written down: {error}")
            return release
        self._say(f"release {release} runs well: {now.state}")
        return now

    def _started(self, release: Release) -> int:
        return max(release.starts, self._starts.get(release.identity, 0))
