"""Signed JSON: {…, "signature": {"key": 64 hex digits, "value": 128}}, Ed25519 over the canonical JSON of the rest.

The signature covers the value and not the bytes, so it stays valid in any formatting of the file. This module does not
know the owners of keys.
"""

from __future__ import annotations

from typing import Any, Dict, Mapping

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from edgeprune_device import strict_json
from edgeprune_device.errors import SignatureError

__all__ = ["sign", "verify"]

FIELD = "signature"


def sign(data: Mapping[str, Any], key: SigningKey) -> Dict[str, Any]:
    """Sign a JSON object.

    Args:
        data: The object; an earlier signature is replaced.
        key: The key to sign with.

    Returns:
        A copy of the object with its signature.
    """
    value = key.sign(_covered(data)).signature.hex()
    return {**data, FIELD: {"key": bytes(key.verify_key).hex(), "value": value}}


def verify(data: Mapping[str, Any], what: str) -> VerifyKey:
    """Verify a signed JSON object.

    Args:
        data: The object.
        what: Begins the error's message.

    Returns:
        The key that signed it.

    Raises:
        SignatureError: The object is unsigned, or was changed after it was signed.
    """
    signature = data.get(FIELD)
    if not isinstance(signature, dict):
        raise SignatureError(f"{what}: not signed")
    try:
        key = VerifyKey(bytes.fromhex(signature["key"]))
        key.verify(_covered(data), bytes.fromhex(signature["value"]))
    except (CryptoError, ValueError, KeyError, TypeError) as error:
        raise SignatureError(
            f"{what}: its signature does not hold: it was changed or damaged; fetch it again"
        ) from error
    return key


def _covered(data: Mapping[str, Any]) -> bytes:
    return strict_json.canonical({name: value for name, value in data.items() if name != FIELD})
