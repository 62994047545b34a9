"""Signed JSON: {…, "signature": {"key": 64 hex digits, "value": 128}}, Ed25519 over the canonical JSON of the rest.

The signature covers the value and not the bytes, so it stays valid in any formatting of the file. The module does not
know the owners of keys.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Mapping, Optional

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from edgeprune_device import strict_json
from edgeprune_device.errors import SignatureError

__all__ = ["sign", "signer", "verify"]

FIELD = "signature"
_CANONICAL = re.compile(rb'"signature":\{"key":"([0-9a-f]{64})","value":"([0-9a-f]{128})"\},')


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


def signer(data: bytes) -> Optional[VerifyKey]:
    """The key that signed a canonical JSON file, found and verified without parsing the file.

    Args:
        data: The bytes of the file.

    Returns:
        The key; None if the file is unsigned, was changed, or is not as `strict_json.canonical` writes it. Only
        `verify` gives the reason.
    """
    matches = [match for match, _ in zip(_CANONICAL.finditer(data), range(2))]
    if len(matches) != 1:
        return None
    begin, end = matches[0].span()
    try:
        key = VerifyKey(bytes.fromhex(matches[0][1].decode("ascii")))
        key.verify(data[:begin] + data[end:], bytes.fromhex(matches[0][2].decode("ascii")))
    except (CryptoError, ValueError):
        return None
    return key


def verify(data: Mapping[str, Any], what: str) -> VerifyKey:
    """Verify a signed JSON object.

    Args:
        data: The object.
        what: Start of the error message.

    Returns:
        The key that signed it.

    Raises:
        SignatureError: The object is unsigned, or was changed after it was signed.
    """
    signature = data.get(FIELD)
    if not isinstance(signature, dict):
        raise SignatureError(f"{what}: not signed; fetch the report again from the device")
    try:
        key = VerifyKey(bytes.fromhex(signature["key"]))
        key.verify(_covered(data), bytes.fromhex(signature["value"]))
    except (CryptoError, ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"{what}: invalid signature (changed or damaged); fetch the report again") from error
    return key


def _covered(data: Mapping[str, Any]) -> bytes:
    return strict_json.canonical({name: value for name, value in data.items() if name != FIELD})
