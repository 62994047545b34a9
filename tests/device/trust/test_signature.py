import json

import pytest
from edgeprune_device import strict_json
from edgeprune_device.errors import SignatureError
from edgeprune_device.trust import keys, signature
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

KEY = SigningKey(b"k" * 32)
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**60), 2**60),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=5).filter(lambda k: k != "signature"), VALUES, max_size=5)


@given(OBJECTS)
def test_signature_survives_any_formatting(data):
    signed = signature.sign(data, KEY)
    again = json.loads(json.dumps(signed, indent=3, sort_keys=True))
    assert bytes(signature.verify(again, "x")) == bytes(KEY.verify_key)
    assert signature.sign(again, KEY) == signed  # the same content has the same signature


@given(OBJECTS, st.text(max_size=5).filter(lambda k: k != "signature"), VALUES)
def test_any_change_is_detected(data, name, value):
    signed = signature.sign(data, KEY)
    changed = {**signed, name: value}
    if json.dumps(changed, sort_keys=True) == json.dumps(signed, sort_keys=True):
        return
    with pytest.raises(SignatureError, match="x: invalid signature"):
        signature.verify(changed, "x")


def test_signature_of_another_key_is_attributed_to_it():
    signed = signature.sign({"a": 1}, KEY)
    other = SigningKey.generate()
    assert keys.fingerprint(signature.verify(signature.sign(signed, other), "x")) == keys.fingerprint(other.verify_key)
    signed["signature"]["key"] = bytes(other.verify_key).hex()
    with pytest.raises(SignatureError):
        signature.verify(signed, "x")


@pytest.mark.parametrize("broken", [None, 7, {}, {"key": "zz", "value": "00"}, {"key": "00" * 32, "value": "0" * 128}])
def test_malformed_signature_is_refused(broken):
    with pytest.raises(SignatureError):
        signature.verify({"a": 1, "signature": broken}, "x")
    with pytest.raises(SignatureError, match="x: not signed"):
        signature.verify({"a": 1}, "x")


def test_the_signer_of_a_canonical_file_is_found_without_parsing():
    key = SigningKey(b"k" * 32)
    for data in ({"a": 1, "z": [2, 3]}, {"a": {"signed": "x"}, "zz": '"signature":{}'}):
        text = strict_json.canonical(signature.sign(data, key))
        assert signature.signer(text) == key.verify_key == signature.verify(json.loads(text), "x")
        for changed in (
            text.replace(b"z", b"y", 1),
            text + b"\n",
            text[:-1],
            b"",
            b"{}",
            strict_json.pretty(data).encode(),
        ):
            assert signature.signer(changed) is None
    nested = signature.sign({"a": signature.sign({"b": 1, "t": 2}, key), "z": 1}, key)
    assert signature.signer(strict_json.canonical(nested)) is None  # which of the two would be a guess
