"""The keys that sign bundles and reports, all Ed25519, and the public keys that this machine accepts.

    ~/.config/edgeprune/keys/host.key      signs this machine's bundles (made on first use, mode 0600)
    ~/.config/edgeprune/keys/host.pub      its public half: `edgeprune keys trust` takes it on a drone
    ~/.config/edgeprune/keys/host.counter  the counter of the last bundle that was signed here
    ~/.config/edgeprune/keys/report.key    signs this device's reports; report.pub: the host has it as devices/NAME.pub
    ~/.config/edgeprune/trusted/NAME.pub   public keys of other hosts whose bundles may run here
    ~/.config/edgeprune/revoked/NAME       keys whose signatures are refused, even if they are also trusted or enrolled
    ~/.config/edgeprune/devices/NAME.pub   on a host: public keys of the devices whose reports it takes
    /etc/edgeprune/trusted, …/revoked      the same two for every user of this machine; not read with EDGEPRUNE_HOME

A report's key is never in trusted/: a lost drone must not be able to sign bundles for the others. A key file is one
line of 64 hexadecimal digits; a file in revoked/ may hold a fingerprint instead.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

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
    "next_counter",
    "own",
    "public",
    "read_public",
    "renew",
    "revoke",
    "revoked",
    "trust",
    "trusted",
    "trusted_files",
]

#: The keys that the administrator, or the author of the disk image, sets for every user.
SYSTEM = Path("/etc/edgeprune")
MAX_COUNTER = (1 << 53) - 1  # any JSON reader takes it

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{22}")


def home() -> Path:
    """The folder of this user's keys: $EDGEPRUNE_HOME, or $XDG_CONFIG_HOME/edgeprune, or ~/.config/edgeprune.

    Raises:
        InputError: The user has no home folder.
    """
    if os.environ.get("EDGEPRUNE_HOME"):
        return Path(os.environ["EDGEPRUNE_HOME"])
    if os.environ.get("XDG_CONFIG_HOME"):
        return Path(os.environ["XDG_CONFIG_HOME"]) / "edgeprune"
    try:
        return Path.home() / ".config" / "edgeprune"
    except RuntimeError as error:  # no HOME and no passwd entry, as in some containers
        raise InputError("this user has no home folder: set EDGEPRUNE_HOME to a folder of your own") from error


def load_or_create(name: str = "host") -> SigningKey:
    """Load one of this machine's signing keys, and make it on first use.

    Two processes that start at the same time get the same key.

    Args:
        name: "host" (signs bundles) or "report" (signs reports).

    Raises:
        InputError: The key's file is damaged, or cannot be read or made.
    """
    path = home() / "keys" / f"{name}.key"
    if not path.exists():
        _make_folder()
        _publish(path, SigningKey.generate())
    key = _read_private(path)
    half, text = path.with_suffix(".pub"), bytes(key.verify_key).hex() + "\n"
    if not half.exists() or half.read_bytes() != text.encode("ascii"):  # `renew` may have been killed in between
        write_atomic(half, text, mode=0o644)
    return key


def renew() -> Tuple[SigningKey, Optional[VerifyKey]]:
    """Replace the key "host" by a new one.

    The former key stays trusted here, as trusted/former-….pub, and is kept as keys/former-….key, so drones that do not
    know the new one yet can still be updated. A kill at any moment leaves one complete key, and both are trusted.

    Returns:
        (the new key, the public half of the former one or None).

    Raises:
        InputError: The former key is damaged, or a file cannot be written.
    """
    folder = _make_folder()
    with _locked(folder):
        path = folder / "host.key"
        if not path.exists():
            return load_or_create(), None
        former = _read_private(path)
        name = f"former-{bytes(former.verify_key).hex()[:8]}"
        _write(home() / "trusted" / f"{name}.pub", bytes(former.verify_key).hex())
        write_atomic(folder / f"{name}.key", bytes(former).hex() + "\n", mode=0o600)
        write_atomic(path, bytes(SigningKey.generate()).hex() + "\n", mode=0o600)
        return load_or_create(), former.verify_key


def next_counter() -> int:
    """Draw the counter of the next bundle that is signed here.

    It is greater than any before, also for two builds at once and after the clock went back, and is on the disk before
    it is used. It is the time in seconds where possible, so that it can usually be compared with another host's.

    Raises:
        InputError: The counter's file cannot be read or written.
    """
    folder = _make_folder()
    path = folder / "host.counter"
    with _locked(folder):
        value = max(0, int(time.time()), _last_counter(path) + 1)
        write_atomic(path, f"{value}\n", mode=0o600)
    return value


def own(name: str = "host") -> Dict[str, VerifyKey]:
    """This machine's own key as {fingerprint: public key}; empty where none was made yet.

    Args:
        name: "host" or "report".
    """
    path = home() / "keys" / f"{name}.key"
    if not path.exists():
        return {}
    key = _read_private(path).verify_key
    return {fingerprint(key): key}


def trusted() -> Dict[str, VerifyKey]:
    """The keys whose bundles may run here: this machine's own and all `trusted/*.pub`, less the revoked ones.

    A damaged file is not trusted, but does not block bundles of the other keys.

    Returns:
        {fingerprint: public key}.
    """
    keys = own()
    for path in _trusted_paths():
        with suppress(InputError):
            key = read_public(path)
            keys[fingerprint(key)] = key
    for mark in revoked():
        keys.pop(mark, None)
    return keys


def trusted_files() -> Dict[str, Tuple[Path, VerifyKey]]:
    """The files of trusted/, including those of revoked keys, as {fingerprint: (file, public key)}.

    Raises:
        InputError: A file is damaged.
    """
    found = {}
    for path in _trusted_paths():
        key = read_public(path)
        found[fingerprint(key)] = path, key
    return found


def revoked() -> Dict[str, Path]:
    """The revoked keys, as {fingerprint: the file that revokes it}.

    Raises:
        InputError: A file cannot be read or understood.
    """
    found = {}
    for path in _files("revoked"):  # with any suffix: a file that cannot be understood must not be skipped
        text = _read_text(path, "revoked key")
        found[text if _FINGERPRINT.fullmatch(text) else fingerprint(read_public(path))] = path
    return found


def trust(name: str, key: VerifyKey) -> bool:
    """Accept bundles of `key` from now on.

    Args:
        name: Name of the key, for people.
        key: The public key.

    Returns:
        False if the key was trusted before.

    Raises:
        SignatureError: The key was revoked.
        InputError: The name is not valid or is taken, or the key signs reports.
    """
    mark = fingerprint(key)
    if mark in revoked():
        raise SignatureError(
            f"{mark}: this key was revoked here; if that was a mistake, remove {revoked()[mark]} first"
        )
    devices = {**enrolled(), **{mark: ("this machine", key) for mark, key in own("report").items()}}
    if mark in devices:
        raise InputError(f"{mark}: the key by which {devices[mark][0]} signs its reports; it must not sign bundles")
    if mark in trusted():
        return False
    _check_name(name, "a name")
    path = home() / "trusted" / f"{name}.pub"
    if path.exists():
        raise InputError(f"{name}: already the name of {fingerprint(read_public(path))}; give another one by --name")
    _write(path, bytes(key).hex())
    return True


def revoke(mark: str) -> bool:
    """Refuse every bundle and report of a key from now on, trusted or not.

    Args:
        mark: Fingerprint of the key.

    Returns:
        False if it was revoked before.

    Raises:
        InputError: The text is no fingerprint, or that of this machine's own key in use.
    """
    if not _FINGERPRINT.fullmatch(mark):
        raise InputError(f"{mark:.80}: not a key's fingerprint (SHA256: and 22 characters)")
    if mark in own():
        raise InputError(
            f"{mark}: this machine's own key, by which it signs; make another one first: edgeprune keys make"
        )
    if mark in revoked():
        return False
    digest = base64.b64decode(mark[len("SHA256:") :] + "==")
    _write(home() / "revoked" / digest.hex(), mark)
    return True


def enrolled() -> Dict[str, Tuple[str, VerifyKey]]:
    """The devices whose reports this host takes, as {fingerprint: (name, public key)}, less the revoked ones."""
    found = {}
    for path in sorted((home() / "devices").glob("*.pub")):
        key = read_public(path)
        found[fingerprint(key)] = path.stem, key
    for mark in revoked():
        found.pop(mark, None)
    return found


def enrol(name: str, key: VerifyKey, *, replace: bool = False) -> bool:
    """Take reports of `key` from now on, as device `name`.

    Args:
        name: Name of the device.
        key: Public key of its reports.
        replace: Replace another key of the same name.

    Returns:
        False if the key was enrolled under this name before.

    Raises:
        SignatureError: See `check_enrolment`.
        InputError: See `check_enrolment`.
    """
    if check_enrolment(name, key, replace=replace):
        return False
    _write(home() / "devices" / f"{name}.pub", bytes(key).hex())
    return True


def check_enrolment(name: str, key: VerifyKey, *, replace: bool = False) -> bool:
    """Whether `key` is enrolled as `name`.

    Args:
        name: Name of the device.
        key: Public key of its reports.
        replace: Permit that the name has another key.

    Raises:
        SignatureError: The name has another key and `replace` is False, or the key was revoked.
        InputError: The name is not valid.
    """
    _check_name(name, "a device's name")
    path = home() / "devices" / f"{name}.pub"
    if fingerprint(key) in revoked():
        raise SignatureError(f"{name}: its report key {fingerprint(key)} was revoked here; see edgeprune keys")
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
    """Read the file of a public key.

    Raises:
        InputError: The file cannot be read or is damaged.
    """
    return VerifyKey(_read_hex(path, "public key"))


def public(text: str, what: str) -> VerifyKey:
    """Parse a public key from its 64 hexadecimal digits.

    Args:
        text: The digits.
        what: Begins the error's message.

    Raises:
        InputError: The text is no public key.
    """
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise InputError(f"{what}: not a public key (64 hexadecimal digits)")
    return VerifyKey(bytes.fromhex(text))


def _read_private(path: Path) -> SigningKey:
    return SigningKey(_read_hex(path, "signing key"))


def _read_hex(path: Path, what: str) -> bytes:
    with suppress(ValueError):
        raw = bytes.fromhex(_read_text(path, what))
        if len(raw) == 32:
            return raw
    raise InputError(f"{path}: not a {what} (one line of 64 hexadecimal digits); restore it, or remove it")


def _read_text(path: Path, what: str) -> str:
    try:
        with open(path, "rb") as stream:
            return stream.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise InputError(f"{path}: the {what} cannot be read ({str(error.strerror).lower()})") from error


def _files(kind: str) -> List[Path]:
    """Every file of /etc/edgeprune/KIND and of this user's.

    A folder that cannot be read raises InputError, because a key that is revoked in it must not pass.
    """
    folders = [home() / kind] if os.environ.get("EDGEPRUNE_HOME") else [SYSTEM / kind, home() / kind]
    found = []
    for folder in folders:
        try:
            found += [folder / name for name in sorted(os.listdir(str(folder))) if not name.startswith(".")]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({str(error.strerror).lower()})") from error
    return found


def _trusted_paths() -> List[Path]:
    return [path for path in _files("trusted") if path.suffix == ".pub"]


def _last_counter(path: Path) -> int:
    try:
        text = _read_text(path, "counter") if path.exists() else "-1"
        value = int(text) if re.fullmatch(r"-1|[0-9]{1,16}", text) else MAX_COUNTER
        # Where it is damaged, its time of writing is the best estimate of its value.
        return value if value < MAX_COUNTER else int(path.stat().st_mtime)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({str(error.strerror).lower()})") from error


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r}: not {what} (letters, digits, '.', '_' and '-', at most 100)")


def _make_folder() -> Path:
    """Make keys/, readable by this user only."""
    folder = home() / "keys"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({str(error.strerror).lower()}); set EDGEPRUNE_HOME elsewhere"
        ) from error
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let only one process at a time change the own key or its counter."""
    try:
        stream = open(folder / ".lock", "wb")  # noqa: SIM115
        fcntl.flock(stream, fcntl.LOCK_EX)
    except OSError as error:
        raise InputError(f"{folder / '.lock'}: cannot be locked ({str(error.strerror).lower()})") from error
    with stream:
        yield


def _write(path: Path, line: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)  # with any umask: no other user may add to it
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({str(error.strerror).lower()})") from error
    write_atomic(path, line + "\n", mode=0o644)


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
