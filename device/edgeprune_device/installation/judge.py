"""Restart the service, watch it, and confirm the release; or return to the release that worked."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Optional

from edgeprune_device.errors import GateError, InputError, SignatureError
from edgeprune_device.installation import restart
from edgeprune_device.installation.options import InstallOptions, SayStep
from edgeprune_device.progress import Say
from edgeprune_device.releases import Release, Releases

__all__ = ["current", "judge"]

_SAY_EVERY_S = 5.0  # between two messages about a watched release


def current(releases: Releases) -> Optional[Release]:
    """The release in use; None if there is none or its record is damaged."""
    with suppress(InputError):  # a damaged record counts as none, and the new release takes its place
        return releases.current()
    return None


# --- judge -----------------------------------------------------------------------------------------------------------
def judge(
    releases: Releases,
    service: restart.Service,
    release: Release,
    former: Optional[Release],
    options: InstallOptions,
    say: SayStep,
) -> Release:
    """Restart the service, watch it and confirm the release; or return to the former one.

    Args:
        releases: The releases.
        service: The service that runs the release.
        release: The new release, which `current` names already.
        former: The release before it, or None.
        options: How to install.
        say: Receives each step.

    Returns:
        The release with its new state; "trial" if its health is not known yet.

    Raises:
        GateError: The release was not healthy and was rolled back.
    """
    say("restart", service.description)
    try:
        service.restart()
        healthy, why = service.watch(release, options.health_s, _now_and_then(lambda text: say("watch", text)))
    except InputError as error:
        healthy, why = False, str(error)
    say("watch", why)
    with releases.state_locked():
        now = releases.get(release.identity)  # the service may have confirmed or rejected it by itself
        if healthy and now.state != "bad":
            say("confirm", f"{now} is good")
            return now if now.state == "good" else releases.confirm(now)
        if healthy is None and now.state != "bad":
            say("confirm", f"{now} stays on trial, because {why}")
            return now
        back = _go_back(releases, now, former, why)
    say("restart", f"back to {back or 'no release'}")
    with suppress(InputError):
        service.restart()
    raise GateError(
        f"{release}: rolled back, because {now.reason or why}; "
        + (f"{back} is in use" if back else "no release is in use")
    )


def _now_and_then(say: Say) -> Say:
    following = [0.0]

    def say_seldom(text: str) -> None:
        if time.monotonic() >= following[0]:
            following[0] = time.monotonic() + _SAY_EVERY_S
            say(text)

    return say_seldom


def _go_back(releases: Releases, release: Release, former: Optional[Release], why: str) -> Optional[Release]:
    """Switch to a release that works, unless the service has done so, and return the one in use.

    The switch comes before the mark, because a release that is marked bad must never be in use.
    """
    now = current(releases)
    if now is not None and now.identity != release.identity:
        back: Optional[Release] = now
    else:
        back = None
        for candidate in (former, *(r for r in releases.all() if r.state == "good")):
            if candidate is None or candidate.identity == release.identity or candidate.state == "bad":
                continue
            with suppress(InputError, SignatureError):
                releases.open(candidate)
                back = candidate
                break
        releases.switch(back)
    if release.state != "bad":
        releases.mark(release, "bad", why)
    return back
