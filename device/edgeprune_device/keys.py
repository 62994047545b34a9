"""The keys that sign and verify bundles: Ed25519, one key a host, and the public keys that this machine trusts.

    ~/.config/edgeprune/keys/host.key      this machine's own key (made on first use, mode 0600)
    ~/.config/edgeprune/keys/host.pub      its public half: copy this to a drone's trusted/ folder
    ~/.config/edgeprune/trusted/NAME.pub   public keys of other hosts whose bundles may run here

A key file is one line of 64 hexadecimal digits.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Dict

from nacl.signing import SigningKey, VerifyKey

from edgeprune_device.errors import InputError
from edgeprune_device.files import write_atomic

__all__ = ["fingerprint", "home", "load_or_create", "own", "read_public", "trusted"]


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


def load_or_create() -> SigningKey:
    """This machine's signing key; made on first use. Two processes that start at once end with the same key."""
    path = home() / "keys" / "host.key"
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
    public = path.with_name("host.pub")
    if not public.exists():
        write_atomic(public, bytes(key.verify_key).hex() + "\n", mode=0o644)
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


def fingerprint(key: VerifyKey) -> str:
    """Short name of a public key, e.g. "SHA256:4Hc2kV0W1q7jBz3nS5mXfA" (the first 128 bits of the hash, base64)."""
    digest = hashlib.sha256(bytes(key)).digest()[:16]
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def read_public(path: Path) -> VerifyKey:
    """A public key file. InputError when it is damaged."""
    return VerifyKey(_read_hex(path, "public key"))


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
    temporary = path.with_name(f".host.{secrets.token_hex(4)}.tmp")
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
