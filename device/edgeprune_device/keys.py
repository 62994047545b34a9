"""The keys that sign bundles and reports, all Ed25519, and the public keys that this machine accepts.

    ~/.config/edgeprune/keys/host.key      signs this machine's bundles (made on first use, mode 0600)
    ~/.config/edgeprune/keys/host.pub      its public half: copy this to a drone's trusted/ folder
    ~/.config/edgeprune/keys/report.key    signs this device's reports; report.pub: the host has it as devices/NAME.pub
    ~/.config/edgeprune/trusted/NAME.pub   public keys of other hosts whose bundles may run here
    ~/.config/edgeprune/devices/NAME.pub   on a host: public keys of the devices whose reports it takes

A report's key is never in trusted/: a drone that is lost must not be able to sign bundles for the others. A key file is
one line of 64 hexadecimal digits.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Dict, Tuple

from nacl.signing import SigningKey, VerifyKey

from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.files import sync_folder, write_atomic

__all__ = [
    "check_enrolment",
    "enrol",
    "enrolled",
    "fingerprint",
    "home",
    "load_or_create",
    "own",
    "public",
    "read_public",
    "trusted",
]

_DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def home() -> Path:
    """$EDGEPRUNE_HOME, or $XDG_CONFIG_HOME/edgeprune, or ~/.config/edgeprune."""
    if os.environ.get("EDGEPRUNE_HOME"):
        return Path(os.environ["EDGEPRUNE_HOME"])
    if os.environ.get("XDG_CONFIG_HOME"):
        return Path(os.environ["XDG_CONFIG_HOME"]) / "edgeprune"
    try:
        return Path.home() / ".config" / "edgeprune"
    except RuntimeError as error:  # no HOME and no passwd entry, as in some containers
        raise InputError("this user has no home folder: set EDGEPRUNE_HOME to a folder of your own") from error


def load_or_create(name: str = "host") -> SigningKey:
    """This machine's signing key "host" (bundles) or "report" (reports); made on first use. Two processes that start at
    once end with the same key."""
    path = home() / "keys" / f"{name}.key"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.parent.chmod(0o700)
        except OSError as error:
            raise InputError(
                f"{path.parent}: cannot be made ({str(error.strerror).lower()}); set EDGEPRUNE_HOME elsewhere"
            ) from error
        _publish(path, SigningKey.generate())
    key = _read_private(path)
    half = path.with_suffix(".pub")
    if not half.exists():
        write_atomic(half, bytes(key.verify_key).hex() + "\n", mode=0o644)
    return key


def own() -> Dict[str, VerifyKey]:
    """{fingerprint: public key} of this machine's own key; empty where none was made yet."""
    path = home() / "keys" / "host.key"
    if not path.exists():
        return {}
    key = _read_private(path).verify_key
    return {fingerprint(key): key}


def trusted() -> Dict[str, VerifyKey]:
    """{fingerprint: public key} of every key whose bundles may run here: this machine's own and `trusted/*.pub`."""
    keys = own()
    for path in sorted((home() / "trusted").glob("*.pub")):
        key = read_public(path)
        keys[fingerprint(key)] = key
    return keys


def enrolled() -> Dict[str, Tuple[str, VerifyKey]]:
    """{fingerprint: (name, public key)} of every device whose reports this host takes."""
    found = {}
    for path in sorted((home() / "devices").glob("*.pub")):
        key = read_public(path)
        found[fingerprint(key)] = path.stem, key
    return found


def enrol(name: str, key: VerifyKey, *, replace: bool = False) -> bool:
    """Take reports of `key` from now on, as device `name`. False: it was enrolled so before. Raises as
    `check_enrolment` does."""
    if check_enrolment(name, key, replace=replace):
        return False
    path = home() / "devices" / f"{name}.pub"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)  # whatever the umask: nobody else enrols
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({str(error.strerror).lower()})") from error
    write_atomic(path, bytes(key).hex() + "\n", mode=0o644)
    return True


def check_enrolment(name: str, key: VerifyKey, *, replace: bool = False) -> bool:
    """Whether `key` is enrolled as `name`.

    SignatureError: the name has another key, which only `replace` permits. InputError: not a name.
    """
    if not _DEVICE_NAME.fullmatch(name):
        raise InputError(f"{name!r}: not a device's name (letters, digits, '.', '_' and '-', at most 100)")
    path = home() / "devices" / f"{name}.pub"
    if not path.exists():
        return False
    known = read_public(path)
    if known != key and not replace:
        raise SignatureError(
            f"{name}: its report key is {fingerprint(key)}, but the device of this name that is enrolled here has "
            f"{fingerprint(known)}: if it was flashed anew, edgeprune setup --re-enrol takes its key; if it is another "
            "one, give --name"
        )
    return known == key


def fingerprint(key: VerifyKey) -> str:
    """Short name of a public key, e.g. "SHA256:4Hc2kV0W1q7jBz3nS5mXfA" (the first 128 bits of the hash, base64)."""
    digest = hashlib.sha256(bytes(key)).digest()[:16]
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def read_public(path: Path) -> VerifyKey:
    """A public key file. InputError when it is damaged."""
    return VerifyKey(_read_hex(path, "public key"))


def public(text: str, what: str) -> VerifyKey:
    """A public key as its 64 hexadecimal digits. InputError, beginning with `what`, when it is none."""
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise InputError(f"{what}: not a public key (64 hexadecimal digits)")
    return VerifyKey(bytes.fromhex(text))


def _read_private(path: Path) -> SigningKey:
    return SigningKey(_read_hex(path, "signing key"))


def _read_hex(path: Path, what: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            text = stream.read(4096)
    except OSError as error:
        raise InputError(f"{path}: the {what} cannot be read ({str(error.strerror).lower()})") from error
    with suppress(ValueError):
        raw = bytes.fromhex(text.decode("ascii").strip())
        if len(raw) == 32:
            return raw
    raise InputError(f"{path}: not a {what} (one line of 64 hexadecimal digits); restore it, or remove it")


def _publish(path: Path, key: SigningKey) -> None:
    """Put the key in place unless another process was first: a hard link fails where a rename would overwrite."""
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp")
    write_atomic(temporary, bytes(key).hex() + "\n", mode=0o600)
    try:
        os.link(str(temporary), str(path))
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links, such as exFAT
        os.replace(str(temporary), str(path))
    finally:
        with suppress(OSError):
            temporary.unlink()
    sync_folder(path.parent)  # reports signed with it survive a power cut, so it must
