"""The command `edgeprune keys`."""

from __future__ import annotations

import argparse
import re
import sys
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

from edgeprune_device.commands import add
from edgeprune_device.errors import InputError
from edgeprune_device.option import Flag, Option, Text, named
from edgeprune_device.options import JSON

if TYPE_CHECKING:
    from nacl.signing import VerifyKey

OPTIONS = (
    Option("report", Flag(), "export: the key that signs this machine's reports", default=False),
    Option("name", Text(), "trust: name of the key on this machine (default: the file's name)", metavar="NAME"),
    JSON.but(help="list: print JSON"),
)
HELP = "list, make, export, trust and revoke the keys that sign bundles and reports"

ACTIONS = ("list", "make", "export", "trust", "revoke")
_ADVICE = """
list    show the keys of this machine, the trusted and revoked keys, and the devices whose reports are accepted
make    make a new bundle key for this machine; the previous key stays trusted until it is revoked
export  print this machine's public bundle key (--report: its report key), or write it to FILE
trust   accept bundles from the host with this public key: a file, such as its host.pub, or 64 hexadecimal digits
revoke  refuse all bundles and reports signed with this key: a fingerprint, a file, or 64 hexadecimal digits
"""


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _ADVICE
    parser.add_argument("action", nargs="?", default="list", choices=ACTIONS, help="action, see below (default: list)")
    parser.add_argument("key", metavar="KEY", nargs="?", help="a file, 64 hexadecimal digits, or a fingerprint")
    add(parser, OPTIONS)


def run(args: Namespace) -> None:
    """Run the chosen action."""
    if args.action in ("trust", "revoke") and args.key is None:
        raise InputError(f"keys {args.action}: KEY is missing; see edgeprune keys --help")
    if args.action in ("list", "make") and args.key is not None:
        raise InputError(f"keys {args.action}: takes no KEY (found {args.key!r:.80}); leave it out")
    for option, action in (("report", "export"), ("name", "trust"), ("json", "list")):
        if getattr(args, option) and args.action != action:
            raise InputError(f"{named(option)}: applies only to keys {action} (found keys {args.action}); leave it out")
    _RUN[args.action](args)


def describe() -> Dict[str, Any]:
    """Describe this machine's keys, without making one.

    Returns:
        A JSON object: this machine's two keys (null if not made yet), and the keys that are trusted, revoked, and
            accepted for reports.
    """
    from edgeprune_device.trust import keys

    revoked, trusted, devices = keys.revoked(), keys.trusted_files(), keys.enrolled()
    names = {mark: path.stem for mark, (path, _) in trusted.items()}
    return {
        "home": str(keys.home()),
        "own": _own("host"),
        "report": _own("report"),
        "trusted": [
            {"fingerprint": mark, "name": path.stem, "public": bytes(key).hex(), "path": str(path)}
            for mark, (path, key) in trusted.items()
            if mark not in revoked
        ],
        "revoked": [
            {"fingerprint": mark, "name": names.get(mark), "path": str(path)} for mark, path in revoked.items()
        ],
        "devices": [
            {"fingerprint": mark, "name": name, "public": bytes(key).hex()} for mark, (name, key) in devices.items()
        ],
    }


def _list(args: Namespace) -> None:
    from edgeprune_device import strict_json
    from edgeprune_device.printable import printable

    data = describe()
    if args.json:
        print(strict_json.pretty(data), end="")
        return
    for kind, what in (("own", "signs this machine's bundles"), ("report", "signs this machine's reports")):
        key = data[kind]
        print(f"{kind:<9}{key['fingerprint']}  {what}" if key else f"{kind:<9}none yet; made on first use")
    for kind in ("trusted", "revoked", "devices"):
        for entry in data[kind]:
            print(f"{kind.rstrip('s'):<9}{entry['fingerprint']}  {printable(entry['name'] or entry['path'])}")


def _make(args: Namespace) -> None:
    from edgeprune_device.trust import keys

    key, former = keys.renew()
    print(f"own      {keys.fingerprint(key.verify_key)}")
    if former is not None:
        mark = keys.fingerprint(former)
        print(f"former   {mark}, still trusted here; if it was stolen: edgeprune keys revoke {mark}")
        print("drones   run edgeprune setup user@drone, or edgeprune keys trust on the drone, to trust the new key")


def _export(args: Namespace) -> None:
    from edgeprune_device.files import write_atomic
    from edgeprune_device.trust import keys

    key = keys.load_or_create("report" if args.report else "host").verify_key
    text = bytes(key).hex() + "\n"
    if args.key is None:
        print(text, end="")
        return
    path = Path(args.key)
    if path.exists():
        raise InputError(f"{path}: already exists; give the path of a new file")
    write_atomic(path, text)
    print(f"{path}: {keys.fingerprint(key)}")


def _trust(args: Namespace) -> None:
    from edgeprune_device.trust import keys

    mark, key, name = _identify(args.key)
    if key is None:
        raise InputError(f"{mark}: a fingerprint, not a key; give the host's host.pub, or its 64 hexadecimal digits")
    new = keys.trust(args.name or name, key)
    print(f"trusted  {mark}" + ("" if new else ", as before"))


def _revoke(args: Namespace) -> None:
    from edgeprune_device.trust import keys

    mark, _, _ = _identify(args.key)
    print(f"revoked  {mark}" + ("" if keys.revoke(mark) else ", as before"))
    _forget_counter(mark)
    _warn_of_releases(mark)


def _forget_counter(mark: str) -> None:
    """Reset the counter of a revoked key, so that a wrong one does not hold if the key is ever trusted again."""
    from edgeprune_device import releases

    there = releases.Releases(releases.DEFAULT_ROOT)
    try:
        if mark in there.counters:
            with there.state_locked():
                there.forget(mark)
            print(f"counter of {mark} reset in {there.root}")
    except InputError as error:
        print(f"warning: counter of {mark}: not reset ({error})", file=sys.stderr)


def _warn_of_releases(mark: str) -> None:
    """Warn of releases that this key signed. They are refused at the next start, even if no other one is left."""
    from edgeprune_device import releases

    there = releases.Releases(releases.DEFAULT_ROOT)
    with suppress(InputError):
        current, signed = there.current(), [r for r in there.all() if r.key_fingerprint == mark]
        if signed:
            use = ", including the one in use" if current in signed else ""
            print(
                f"warning: {there.root}: releases signed by this key will not start again ({len(signed)}{use}); "
                "deploy a bundle that is signed by another key",
                file=sys.stderr,
            )


def _identify(text: str) -> Tuple[str, Optional[VerifyKey], str]:
    """Parse the argument KEY: (fingerprint, the key itself or None, a name for it)."""
    from edgeprune_device.trust import keys

    if re.fullmatch("SHA256:[A-Za-z0-9+/]{22}", text):
        return text, None, ""
    if re.fullmatch("[0-9a-fA-F]{64}", text):
        key = keys.public(text.lower(), "KEY")
        return keys.fingerprint(key), key, text[:8].lower()
    path = Path(text)
    if path.suffix == ".key":  # the same format, but secret: never copied among the public keys
        raise InputError(f"{path}: a private key; give the public key, {path.with_suffix('.pub').name}")
    key = keys.read_public(path)
    return keys.fingerprint(key), key, path.stem


def _own(name: str) -> Optional[Dict[str, str]]:
    from edgeprune_device.trust import keys

    key = keys.own(name)
    path = keys.home() / "keys" / f"{name}.pub"
    return next(
        ({"fingerprint": mark, "public": bytes(half).hex(), "path": str(path)} for mark, half in key.items()), None
    )


_RUN = {"list": _list, "make": _make, "export": _export, "trust": _trust, "revoke": _revoke}
