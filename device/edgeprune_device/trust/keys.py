"""The keys that sign bundles and reports, all Ed25519, and the public keys that this machine accepts.

    ~/.config/edgeprune/keys/host.key      signs this machine's bundles (made on first use, mode 0600)
    ~/.config/edgeprune/keys/host.pub      its public half: `edgeprune keys trust` takes it on a drone
    ~/.config/edgeprune/keys/host.counter  the counter of the last bundle that host.key signed
    ~/.config/edgeprune/keys/report.key    signs this device's reports; report.pub: the host has it as devices/NAME.pub
    ~/.config/edgeprune/trusted/NAME.pub   public keys of other hosts whose bundles may run here
    ~/.config/edgeprune/revoked/NAME       keys whose signatures are refused, even if they are also trusted or enrolled
    ~/.config/edgeprune/devices/NAME.pub   on a host: public keys of the devices whose reports are accepted
    /etc/edgeprune/trusted, …/revoked      the same for all users of this machine; ignored with EDGEPRUNE_HOME

A report key is never in trusted/, because a lost drone must not be able to sign bundles for others. A key file is one
line of 64 hexadecimal digits; a file in revoked/ may hold a fingerprint instead. A file that another user could have
changed is not accepted (`trust/permissions.py`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from nacl.signing import SigningKey, VerifyKey

from edgeprune_device.errors import InputError, SignatureError, reason
from edgeprune_device.files import check_file, lock, make_folder, sync_folder, write_atomic
from edgeprune_device.option import named
from edgeprune_device.trust import permissions

__all__ = [
    "check_enrolment",
    "enrol",
    "enrolled",
    "fingerprint",
    "home",
    "load_or_create",
    "next_counter",
    "own",
    "problems",
    "public",
    "read_public",
    "renew",
    "revoke",
    "revoked",
    "trust",
    "trusted",
    "trusted_files",
]

#: Keys that the administrator or the author of the disk image sets for all users.
SYSTEM = Path("/etc/edgeprune")
MAX_COUNTER = (1 << 53) - 1  # exact in every JSON reader

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
        raise InputError("home folder: not found for this user; set EDGEPRUNE_HOME to a private folder") from error


def load_or_create(name: str = "host") -> SigningKey:
    """Load one of this machine's signing keys, created on first use.

    Two processes that start at the same time get the same key.

    Args:
        name: "host" (signs bundles) or "report" (signs reports).

    Raises:
        InputError: The key's file is damaged, or cannot be read or created.
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
    """Replace the key "host" with a new one.

    The former key stays trusted here, as trusted/former-….pub, and is kept as keys/former-….key, so drones that do not
    know the new one yet can still be updated. A kill at any moment leaves one complete key, and both are trusted. The
    new key has a separate count, which begins with the present time.

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
        with suppress(FileNotFoundError):
            (folder / "host.counter").unlink()  # last: the former key never counts downwards
        return load_or_create(), former.verify_key


def next_counter() -> int:
    """Return the counter for the next bundle that is signed here.

    It is greater than any before of the same key, also for two builds at once and after the clock went back, and is on
    the disk before it is used. It is the time in seconds where possible.

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
    """This machine's own key as {fingerprint: public key}; empty if none was made yet.

    Args:
        name: "host" or "report".
    """
    path = home() / "keys" / f"{name}.key"
    if not path.exists():
        return {}
    key = _read_private(path).verify_key
    return {fingerprint(key): key}


def trusted() -> Dict[str, VerifyKey]:
    """The keys whose bundles may run here: this machine's own and all `trusted/*.pub`, except revoked ones.

    A file that is damaged, or that another user may change, is not trusted, but does not block bundles signed with
    other keys.

    Returns:
        {fingerprint: public key}.

    Raises:
        InputError: Another user may change the folders of the keys, or a file of the revoked ones.
    """
    keys = own()
    for path in _trusted_paths():
        with suppress(InputError):
            key = _stored(path)
            keys[fingerprint(key)] = key
    for mark in revoked():
        keys.pop(mark, None)
    return keys


def trusted_files() -> Dict[str, Tuple[Path, VerifyKey]]:
    """The files of trusted/, including those of revoked keys, as {fingerprint: (file, public key)}.

    Raises:
        InputError: A file is damaged, or another user may change it.
    """
    by_fingerprint = {}
    for path in _trusted_paths():
        key = _stored(path)
        by_fingerprint[fingerprint(key)] = path, key
    return by_fingerprint


def revoked() -> Dict[str, Path]:
    """The revoked keys, as {fingerprint: the file that revokes it}.

    Raises:
        InputError: A file cannot be read or parsed, or another user may change it.
    """
    by_fingerprint = {}
    for path in _files("revoked"):  # with any suffix, because an unknown file must not be skipped
        permissions.check(path, home())
        text = _read_text(path, "revoked key")
        by_fingerprint[text if _FINGERPRINT.fullmatch(text) else fingerprint(read_public(path))] = path
    return by_fingerprint


def trust(name: str, key: VerifyKey) -> bool:
    """Accept bundles signed with `key` from now on.

    Args:
        name: Name of the key, for display.
        key: The public key.

    Returns:
        False if the key was already trusted.

    Raises:
        SignatureError: The key was revoked.
        InputError: The name is not valid or is taken, or the key signs reports.
    """
    mark = fingerprint(key)
    if mark in revoked():
        raise SignatureError(f"{mark}: this key is revoked here; if that was a mistake, remove {revoked()[mark]} first")
    devices = {**enrolled(), **{mark: ("this machine", key) for mark, key in own("report").items()}}
    if mark in devices:
        raise InputError(
            f"{mark}: the report key of {devices[mark][0]}, which cannot be trusted for bundles; give the key of a host"
        )
    if mark in trusted():
        return False
    _check_name(name, "a valid name")
    path = home() / "trusted" / f"{name}.pub"
    if path.exists():
        raise InputError(f"{name}: already the name of {fingerprint(_stored(path))}; give another {named('name')}")
    _write(path, bytes(key).hex())
    return True


def revoke(mark: str) -> bool:
    """Refuse every bundle and report signed with a key from now on, even if it is trusted.

    Args:
        mark: Fingerprint of the key.

    Returns:
        False if the key was already revoked.

    Raises:
        InputError: The text is not a fingerprint, or it is the fingerprint of the key that this machine uses.
    """
    if not _FINGERPRINT.fullmatch(mark):
        raise InputError(
            f"{mark:.80}: invalid fingerprint (expected SHA256: and 22 characters); edgeprune keys lists them"
        )
    if mark in own():
        raise InputError(
            f"{mark}: cannot be revoked, because it is this machine's current key; run edgeprune keys make to "
            "create a new key, then revoke this one"
        )
    if mark in revoked():
        return False
    digest = base64.b64decode(mark[len("SHA256:") :] + "==")
    _write(home() / "revoked" / digest.hex(), mark)
    return True


def enrolled() -> Dict[str, Tuple[str, VerifyKey]]:
    """The devices whose reports this host accepts, as {fingerprint: (name, public key)}, except revoked ones.

    Raises:
        InputError: A file is damaged, or another user may change it.
    """
    by_fingerprint = {}
    for path in _enrolled_paths():
        key = _stored(path)
        by_fingerprint[fingerprint(key)] = path.stem, key
    for mark in revoked():
        by_fingerprint.pop(mark, None)
    return by_fingerprint


def enrol(name: str, key: VerifyKey, *, replace: bool = False) -> bool:
    """Accept reports signed with `key` from now on, as those of device `name`.

    Args:
        name: Name of the device.
        key: Public key of its reports.
        replace: Replace another key of the same name.

    Returns:
        False if the key was already enrolled under this name.

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
        replace: Allow the name to have another key.

    Raises:
        SignatureError: The name has another key and `replace` is False, or the key was revoked.
        InputError: The name is not valid.
    """
    _check_name(name, "a valid device name")
    path = home() / "devices" / f"{name}.pub"
    if fingerprint(key) in revoked():
        raise SignatureError(f"{name}: the report key {fingerprint(key)} is revoked here; see edgeprune keys")
    if not path.exists():
        return False
    known = _stored(path)
    if known != key and not replace:
        raise SignatureError(
            f"{name}: a different report key (found {fingerprint(key)}, expected the enrolled {fingerprint(known)}); "
            "if the device was flashed again, accept its key with edgeprune setup --re-enrol; if it is another device, "
            f"give it another {named('name')}"
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
        what: Start of the error message.

    Raises:
        InputError: The text is not a public key.
    """
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise InputError(f"{what}: not a public key (expected 64 hexadecimal digits)")
    return VerifyKey(bytes.fromhex(text))


def problems() -> List[str]:
    """List the key files that are damaged or that another user may change, and private keys that another user may read.

    Returns:
        One line for each problem.
    """
    lines: Dict[str, None] = {}

    def attempt(read: Callable[..., Any], *arguments: Path) -> Any:
        try:
            return read(*arguments)
        except InputError as error:
            lines[str(error)] = None
            return ()

    for path in sorted((home() / "keys").glob("*.key")):
        attempt(_read_private, path)
    for path in [*attempt(_trusted_paths), *attempt(_enrolled_paths)]:
        attempt(_stored, path)
    attempt(revoked)
    return list(lines)


def _stored(path: Path) -> VerifyKey:
    """Read a file of trusted/ or devices/, which another user must not be able to change."""
    permissions.check(path, home())
    return read_public(path)


def _read_private(path: Path) -> SigningKey:
    permissions.check(path, home(), private=True)
    return SigningKey(_read_hex(path, "signing key"))


def _read_hex(path: Path, what: str) -> bytes:
    with suppress(ValueError):
        raw = bytes.fromhex(_read_text(path, what))
        if len(raw) == 32:
            return raw
    raise InputError(f"{path}: not a {what} (expected one line of 64 hexadecimal digits); restore or remove the file")


def _read_text(path: Path, what: str) -> str:
    if path.exists() and not path.is_dir():
        check_file(path)
    try:
        with open(path, "rb") as stream:
            return stream.read(4096).decode("ascii", "replace").strip()
    except OSError as error:
        raise InputError(f"{path}: the {what} cannot be read ({reason(error)})") from error


def _files(kind: str) -> List[Path]:
    """Every file of /etc/edgeprune/KIND and of this user's KIND.

    Raises InputError for an unreadable folder, because a key that is revoked in it must not be accepted.
    """
    folders = [home() / kind] if os.environ.get("EDGEPRUNE_HOME") else [SYSTEM / kind, home() / kind]
    paths = []
    for folder in folders:
        permissions.check(folder, home())  # also if missing, because another user may have moved it
        try:
            paths += [folder / name for name in sorted(os.listdir(str(folder))) if not name.startswith(".")]
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({reason(error)})") from error
    return paths


def _trusted_paths() -> List[Path]:
    return [path for path in _files("trusted") if path.suffix == ".pub"]


def _enrolled_paths() -> List[Path]:
    return sorted((home() / "devices").glob("*.pub"))


def _last_counter(path: Path) -> int:
    try:
        text = _read_text(path, "counter") if path.exists() else "-1"
        value = int(text) if re.fullmatch(r"-1|[0-9]{1,16}", text) else MAX_COUNTER
        # If it is damaged, its time of writing is the best estimate.
        return value if value < MAX_COUNTER else int(path.stat().st_mtime)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r}: not {what} (expected at most 100 letters, digits, '.', '_' and '-')")


def _make_folder() -> Path:
    """Create keys/, readable only by this user."""
    folder = home() / "keys"
    permissions.check(folder.parent, home())
    try:
        make_folder(folder, 0o700)
        folder.chmod(0o700)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be created ({reason(error)}); set EDGEPRUNE_HOME to another folder"
        ) from error
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let only one process at a time change the own key or its counter."""
    try:
        descriptor = os.open(str(folder / ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        lock(descriptor)
    except OSError as error:
        raise InputError(f"{folder / '.lock'}: cannot be locked ({reason(error)})") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, line: str) -> None:
    permissions.check(path.parent, home())
    try:
        make_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be created ({reason(error)})") from error
    write_atomic(path, line + "\n", mode=0o644)


def _publish(path: Path, key: SigningKey) -> None:
    """Put the key in place unless another process was first: a hard link fails if the file exists."""
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
    sync_folder(path.parent)  # it must survive a power cut like the reports signed with it
