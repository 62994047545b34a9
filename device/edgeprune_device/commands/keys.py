"""The command `edgeprune keys`."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import suppress
from pathlib import Path

from edgeprune_device.errors import InputError

HELP = "whose bundles run here, who signs here; make, export, trust and revoke keys"

ACTIONS = ("list", "make", "export", "trust", "revoke")
_ADVICE = """
list    the keys of this machine, and those that it trusts, refuses and takes reports of
make    a new key for this machine's bundles; the former one stays trusted until it is revoked
export  the public half of this machine's bundle key (--report: of its report key), to FILE or as a line
trust   run bundles of the host whose public key this is: a file, such as its host.pub, or 64 hexadecimal digits
revoke  take no bundle and no report of this key any more: a fingerprint, a file, or 64 hexadecimal digits
"""


def configure(parser) -> None:
    """Add the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _ADVICE
    parser.add_argument("action", nargs="?", default="list", choices=ACTIONS, help="default: list; see below")
    parser.add_argument("key", metavar="KEY", nargs="?", help="a file, 64 hexadecimal digits, or a fingerprint")
    parser.add_argument("--report", action="store_true", help="export: the key that signs this machine's reports")
    parser.add_argument("--name", help="trust: what the key is called here; default: the file's name")
    parser.add_argument("--json", action="store_true", help="list: print JSON")


def run(args) -> None:
    """Run the chosen action."""
    if args.action in ("trust", "revoke") and args.key is None:
        raise InputError(f"keys {args.action}: which one? (see edgeprune keys --help)")
    if args.action in ("list", "make") and args.key is not None:
        raise InputError(f"keys {args.action} takes no key, but got {args.key!r:.80}")
    for option, action in (("report", "export"), ("name", "trust"), ("json", "list")):
        if getattr(args, option) and args.action != action:
            raise InputError(f"--{option} belongs to keys {action}")
    _RUN[args.action](args)


def describe() -> dict:
    """Describe this machine's keys; makes no key.

    Returns:
        A JSON object: this machine's two keys (null where none was made yet), and the keys that it trusts, refuses, and
            takes reports of.
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


def _list(args) -> None:
    from edgeprune_device import strict_json
    from edgeprune_device.printable import printable

    data = describe()
    if args.json:
        print(strict_json.pretty(data), end="")
        return
    for kind, what in (("own", "signs this machine's bundles"), ("report", "signs this machine's reports")):
        key = data[kind]
        print(f"{kind:<9}{key['fingerprint']}  {what}" if key else f"{kind:<9}none yet: it is made when it is needed")
    for kind in ("trusted", "revoked", "devices"):
        for entry in data[kind]:
            print(f"{kind.rstrip('s'):<9}{entry['fingerprint']}  {printable(entry['name'] or entry['path'])}")


def _make(args) -> None:
    from edgeprune_device.trust import keys

    key, former = keys.renew()
    print(f"own      {keys.fingerprint(key.verify_key)}")
    if former is not None:
        mark = keys.fingerprint(former)
        print(f"former   {mark}, still trusted here; was it stolen? edgeprune keys revoke {mark}")
        print("drones   trust the new one after edgeprune setup user@drone, or edgeprune keys trust there")


def _export(args) -> None:
    from edgeprune_device.files import write_atomic
    from edgeprune_device.trust import keys

    key = keys.load_or_create("report" if args.report else "host").verify_key
    text = bytes(key).hex() + "\n"
    if args.key is None:
        print(text, end="")
        return
    path = Path(args.key)
    if path.exists():
        raise InputError(f"{path}: exists already; give another name")
    write_atomic(path, text)
    print(f"{path}: {keys.fingerprint(key)}")


def _trust(args) -> None:
    from edgeprune_device.trust import keys

    mark, key, name = _identify(args.key)
    if key is None:
        raise InputError(f"{mark}: a fingerprint is not a key; give the host's host.pub, or its 64 hexadecimal digits")
    new = keys.trust(args.name or name, key)
    print(f"trusted  {mark}" + ("" if new else ", as before"))


def _revoke(args) -> None:
    from edgeprune_device.trust import keys

    mark, _, _ = _identify(args.key)
    print(f"revoked  {mark}" + ("" if keys.revoke(mark) else ", as before"))
    _warn_of_releases(mark)


def _warn_of_releases(mark: str) -> None:
    """Warn of releases that this key signed: they are refused at the next start, also the only one."""
    from edgeprune_device import releases

    there = releases.Releases(releases.DEFAULT_ROOT)
    with suppress(InputError):
        current, signed = there.current(), [r for r in there.all() if r.key_fingerprint == mark]
        if signed:
            use = ", the one in use too" if current in signed else ""
            print(
                f"warning: {len(signed)} of the releases in {there.root} do not start again{use}: deploy one that is "
                "signed by another key",
                file=sys.stderr,
            )


def _identify(text: str):
    """(fingerprint, the key itself or None, a name for it) of the argument KEY."""
    from edgeprune_device.trust import keys

    if re.fullmatch("SHA256:[A-Za-z0-9+/]{22}", text):
        return text, None, ""
    if re.fullmatch("[0-9a-fA-F]{64}", text):
        key = keys.public(text.lower(), "KEY")
        return keys.fingerprint(key), key, text[:8].lower()
    path = Path(text)
    if path.suffix == ".key":  # the same digits, but a secret: it must not be copied among the public ones
        raise InputError(f"{path}: a private key; give its public half, {path.with_suffix('.pub').name}")
    key = keys.read_public(path)
    return keys.fingerprint(key), key, path.stem


def _own(name: str):
    from edgeprune_device.trust import keys

    key = keys.own(name)
    path = keys.home() / "keys" / f"{name}.pub"
    return next(
        ({"fingerprint": mark, "public": bytes(half).hex(), "path": str(path)} for mark, half in key.items()), None
    )


_RUN = {"list": _list, "make": _make, "export": _export, "trust": _trust, "revoke": _revoke}
