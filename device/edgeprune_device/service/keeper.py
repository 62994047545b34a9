"""Chooses the release to run: the current one while it works, otherwise the newest good one.

- A release on trial has three starts to stay healthy for the window. Otherwise it is marked bad, and the newest good
  release takes over. A start is counted before the model is loaded, and taken back if the source then is missing.
- A release that fails verification is also marked bad, but only if another one verifies: a missing trust store must not
  condemn all of them.
- A release without a fallback stays in use despite its failures.

Changes that cannot be written, because the disk is full or broken, are kept in memory until the service ends. The
module does not depend on processes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Optional, Tuple

from edgeprune_device.errors import EdgepruneError
from edgeprune_device.progress import Say
from edgeprune_device.releases import Release, Releases

__all__ = ["MOST_STARTS", "Keeper"]

MOST_STARTS = 3


class Keeper:
    """Chooses the release to run.

    Args:
        releases: The releases.
        window_s: How long a release must stay healthy, s; for messages.
        say: Prints a line of text, each text only once.
    """

    def __init__(self, releases: Releases, window_s: float, say: Say):
        self._releases, self._window_s, self._say = releases, window_s, say
        self._starts: Dict[str, int] = {}
        self._instead: Dict[Optional[str], Release] = {}

    def forget(self) -> None:
        """Forget the unwritten changes after the releases were changed from outside."""
        self._starts.clear()
        self._instead.clear()

    def choose(self, last: Optional[str]) -> Tuple[Optional[Release], str]:
        """The release to start now.

        Args:
            last: Why the last start failed, or None.

        Returns:
            (the release, ""), or (None, the reason why there is none).
        """
        try:
            release = self._releases.current()
        except EdgepruneError as error:
            other = self.fall_back(None, str(error))
            return other, "" if other else str(error)
        if release is None:
            why = f"{self._releases.root}: no release yet; install one with edgeprune deploy"
            self._say(why)
            return None, why
        if release.identity in self._instead:
            return self._instead[release.identity], ""
        why = ""
        if release.state == "bad":
            why = release.reason or "the release is marked bad"
        elif release.state == "trial" and self._started(release) >= MOST_STARTS:
            because = f" ({last})" if last else ""
            why = f"{self._started(release)} starts, none with frames for {self._window_s:g} s{because}"
        return (self.fall_back(release, why) if why else None) or release, ""

    def fall_back(self, release: Optional[Release], why: str) -> Optional[Release]:
        """Mark a release bad and switch to the newest good release that verifies.

        Args:
            release: The release; None if `current` cannot be read.
            why: The reason, in one line.

        Returns:
            The release that is now in use; None if there is no other one and nothing has changed.
        """
        identity = None if release is None else release.identity
        for other in self._releases.all():
            if other.state != "good" or other.identity == identity:
                continue
            try:
                self._releases.open(other)
            except EdgepruneError as error:
                self._say(f"release {other} cannot be used as the fallback: {error}")
                continue
            try:
                with self._releases.state_locked():
                    now = None if release is None else self._releases.current()
                    if now is not None and now.identity != identity:
                        return now  # an installation has switched in the meantime …
                    if now is not None and release is not None and now.state != release.state:
                        return now  # … or changed its state
                    if not self._releases.folder(other).is_dir():
                        continue  # removed at this moment
                    # Switch first: a release marked bad is never in use, even after a kill in between.
                    self._releases.switch(other)
                    if now is not None:
                        self._releases.mark(now, "bad", why)
            except EdgepruneError as error:
                self._say(f"the switch to the fallback cannot be saved: {error}")
                self._instead[identity] = other
            self._say(f"falling back to release {other}{f' from {release}' if release else ''}: {why}")
            return other
        self._say(f"release {release or 'unknown'}: failed, and no good release is left to fall back to ({why})")
        return None

    def count(self, release: Release, starts: int) -> None:
        """Add `starts` (1 or -1) to the starts of a release on trial, and write them to the disk before returning."""
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
            self._say(f"release {release}: its start cannot be recorded ({error})")

    def confirm(self, release: Release) -> Release:
        """Mark a release that runs well as good, and return it with its new state."""
        try:
            with self._releases.state_locked():
                now = self._releases.current()
                if now is None or now.identity != release.identity:
                    return release  # an installation has switched in the meantime and will send a signal
                if now.state == "trial":
                    now = self._releases.confirm(now)
        except EdgepruneError as error:
            self._say(f"release {release}: runs well, but its state cannot be saved ({error})")
            return release
        self._say(f"release {release}: runs well, and is now {now.state}")
        return now

    def _started(self, release: Release) -> int:
        return max(release.starts, self._starts.get(release.identity, 0))
