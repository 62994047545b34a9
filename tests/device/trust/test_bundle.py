import hashlib
import json
import random
import struct

import pytest
from edgeprune_device import strict_json
from edgeprune_device.errors import EdgepruneError, InputError, SignatureError
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import MAGIC, Bundle, read_manifest
from edgeprune_device.trust.manifest import Manifest
from fakes import hostile
from fakes.hostile import KEY, MINIMAL, seal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

TRUSTED = [KEY.verify_key]


def small(path):
    return Bundle.write(path, MINIMAL, {"a": b"hello", "b": b""}, KEY)


def refused(path, **options):
    with pytest.raises(EdgepruneError) as caught:
        Bundle.open(path, **{"trusted": TRUSTED, **options})
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return caught.value


def test_round_trip(bundle, manifest, tiny_onnx):
    opened = Bundle.open(bundle.path)
    assert opened.trusted and opened.key_fingerprint == keys.fingerprint(keys.load_or_create().verify_key)
    assert opened.read("model.fp32.onnx") == tiny_onnx
    assert list(opened.payloads) == ["model.fp32.onnx", "evaluation.zip"]
    assert opened.payloads["model.fp32.onnx"].size_bytes == len(tiny_onnx)
    assert opened.sha256 == bundle.sha256 == hashlib.sha256(bundle.path.read_bytes()).hexdigest()
    stored = opened.manifest.to_json()
    assert {key: stored[key] for key in manifest} == manifest


def test_layout_is_the_documented_one(tmp_path):
    data = small(tmp_path / "a.epb").path.read_bytes()
    magic, version, length = struct.unpack_from("<8sII", data)
    assert (magic, version) == (b"\x89EPB\r\n\x1a\n", 1)
    assert data[16:48] == bytes(KEY.verify_key)
    text = data[112 : 112 + length]
    KEY.verify_key.verify(data[:48] + text, data[48:112])
    assert strict_json.canonical(json.loads(text)) == text
    assert data[112 + length :] == b"hello"


def test_the_same_input_gives_the_same_bytes(tmp_path):
    assert small(tmp_path / "a.epb").sha256 == small(tmp_path / "b.epb").sha256


def test_payloads_from_paths_are_the_same_as_from_bytes(tmp_path):
    data = random.Random(0).getrandbits(8 * 3_000_000).to_bytes(3_000_000, "little")
    (tmp_path / "big").write_bytes(data)
    a = Bundle.write(tmp_path / "a.epb", MINIMAL, {"big": tmp_path / "big"}, KEY)
    b = Bundle.write(tmp_path / "b.epb", MINIMAL, {"big": data}, KEY)
    assert a.sha256 == b.sha256 and a.read("big") == data


def test_every_flipped_byte_of_a_small_bundle_is_refused(tmp_path):
    data = small(tmp_path / "a.epb").path.read_bytes()
    path = tmp_path / "b.epb"
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 0x20]) + data[i + 1 :])
        refused(path)
        # Whoever accepts unknown keys still gets no changed byte.
        refused(path, allow_untrusted=True)


def test_random_flips_of_a_larger_bundle_are_refused(tmp_path):
    source, rng = tmp_path / "a.epb", random.Random(1)
    Bundle.write(source, MINIMAL, {"a": rng.getrandbits(8 * 2_500_000).to_bytes(2_500_000, "little")}, KEY)
    data = bytearray(source.read_bytes())
    path = tmp_path / "b.epb"
    for i in [rng.randrange(len(data)) for _ in range(25)] + [len(data) - 1]:
        data[i] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert isinstance(refused(path), (SignatureError, InputError))
        path.write_bytes(source.read_bytes())
        data[:] = source.read_bytes()
    Bundle.open(path, trusted=TRUSTED)  # the file itself is good: only the flips were refused


def test_every_truncation_and_any_trailing_byte_is_refused(tmp_path):
    data = small(tmp_path / "a.epb").path.read_bytes()
    path = tmp_path / "b.epb"
    for n in range(len(data)):
        path.write_bytes(data[:n])
        refused(path)
    path.write_bytes(data + b"\0")
    assert "followed by something" in str(refused(path))


def test_unknown_key_is_named_and_can_be_allowed(tmp_path, home):
    path = small(tmp_path / "a.epb").path
    error = refused(path, trusted=None)
    assert isinstance(error, SignatureError)
    assert keys.fingerprint(KEY.verify_key) in str(error) and "edgeprune keys trust host.pub" in str(error)
    opened = Bundle.open(path, allow_untrusted=True)
    assert not opened.trusted and opened.read("a") == b"hello"
    (home / "trusted").mkdir(parents=True)
    (home / "trusted" / "host.pub").write_text(bytes(KEY.verify_key).hex())
    assert Bundle.open(path).trusted


def test_another_keys_signature_under_a_trusted_name(tmp_path):
    data = bytearray(small(tmp_path / "a.epb").path.read_bytes())
    length = struct.unpack_from("<I", data, 12)[0]
    data[48:112] = SigningKey.generate().sign(bytes(data[:48] + data[112 : 112 + length])).signature
    (tmp_path / "b.epb").write_bytes(data)
    assert "does not hold" in str(refused(tmp_path / "b.epb"))


def test_a_revoked_key_is_refused_whatever_is_allowed(tmp_path, home):
    path, mark = small(tmp_path / "a.epb").path, keys.fingerprint(KEY.verify_key)
    keys.trust("host", KEY.verify_key)
    assert Bundle.open(path).trusted
    keys.revoke(mark)
    envelope = path.read_bytes()[: -len(b"hello")]
    for options in ({}, {"allow_untrusted": True}, {"trusted": TRUSTED}, {"trusted": TRUSTED, "allow_untrusted": True}):
        error = refused(path, **{"trusted": None, **options})
        assert isinstance(error, SignatureError) and mark in str(error) and "was revoked here" in str(error)
        with pytest.raises(SignatureError, match=r"^x: .* was revoked here"):
            read_manifest(envelope, "x", **options)
    with pytest.raises(SignatureError, match="was revoked here"):
        small(tmp_path / "b.epb")
    assert not (tmp_path / "b.epb").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n" + b"\0" * 200])
def test_not_a_bundle(tmp_path, content):
    (tmp_path / "a.epb").write_bytes(content)
    assert type(refused(tmp_path / "a.epb")) is InputError


def test_a_newer_format_is_not_guessed(tmp_path):
    data = bytearray(small(tmp_path / "a.epb").path.read_bytes())
    data[8] = 2
    (tmp_path / "b.epb").write_bytes(data)
    assert "format 2 is not known" in str(refused(tmp_path / "b.epb"))


def test_missing_and_folder(tmp_path):
    assert "no such file" in str(refused(tmp_path / "none.epb"))
    assert "is a directory" in str(refused(tmp_path))


def test_the_envelope_alone_is_verified_as_the_bundle_is(tmp_path):
    bundle = small(tmp_path / "a.epb")
    data = bundle.path.read_bytes()
    envelope = data[: bundle.envelope_bytes]
    assert data[bundle.envelope_bytes :] == b"hello"
    assert read_manifest(envelope, "x", TRUSTED) == (bundle.manifest, KEY.verify_key, True)
    with pytest.raises(SignatureError, match=r"^x: signed by .* not trusted here"):
        read_manifest(envelope, "x")
    assert read_manifest(envelope, "x", allow_untrusted=True)[2] is False
    for i in range(len(envelope)):
        for broken in (envelope[:i], envelope[:i] + bytes([envelope[i] ^ 1]) + envelope[i + 1 :]):
            with pytest.raises(EdgepruneError, match=r"^x: "):
                read_manifest(broken, "x", TRUSTED, allow_untrusted=True)
    with pytest.raises(SignatureError, match="followed by something"):
        read_manifest(data, "x", TRUSTED)


def test_a_change_after_opening_is_noticed(bundle):
    data = bytearray(bundle.path.read_bytes())
    data[-1] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(SignatureError, match=r"evaluation\.zip does not match"):
        bundle.read("evaluation.zip")


def test_reading_what_is_not_there(bundle):
    with pytest.raises(InputError, match="no payload 'x'; it has model"):
        bundle.read("x")


def test_a_bad_manifest_or_payload_writes_nothing(tmp_path):
    path = tmp_path / "a.epb"
    loop = []
    loop.append(loop)
    for change in (
        {"name": "a/b"},
        {"lineage": {"x": float("nan")}},
        {"lineage": {"x": b""}},
        {"lineage": {"x": loop}},
    ):
        with pytest.raises(InputError, match="manifest"):
            Bundle.write(path, {**MINIMAL, **change}, {}, KEY)
    with pytest.raises(InputError, match=r"none\.onnx: cannot be read"):
        Bundle.write(path, MINIMAL, {"a": tmp_path / "none.onnx"}, KEY)
    with pytest.raises(InputError, match=r"manifest has .* bytes"):
        Bundle.write(path, {**MINIMAL, "lineage": {"x": "y" * 2_000_000}}, {}, KEY)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


@pytest.mark.parametrize("what", hostile.MANIFESTS)
def test_sealed_but_hostile_manifests_are_refused(tmp_path, what):
    error = refused(seal(tmp_path / "a.epb", *hostile.MANIFESTS[what]))
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    "text, word",
    [
        (b"{}", "schema_version"),
        (b"[]", "object"),
        (b'{"schema_version":1,"schema_version":1}', "twice"),
        (b'{"schema_version":NaN}', "NaN"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "deeply"),
        (b"9" * 100_000, "too long"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_sealed_but_hostile_manifests(tmp_path, text, word):
    assert word in str(refused(seal(tmp_path / "a.epb", text)))


@pytest.mark.parametrize(
    "what, word",
    [
        ("larger than the file", "cut off"),
        ("smaller than the file", "followed by something"),
        ("larger than the limit together", "at most"),
        ("overlapping", "must begin at 2"),
        ("a gap", "must begin at 1"),
        ("a name twice but for case", "stands twice"),
        ("another hash", "does not match"),
        ("too many", "at most 64"),
        ("a payload's name is '/evil'", "payloads[0].name: must match"),
    ],
)
def test_what_is_wrong_with_a_payload_table_is_said(tmp_path, what, word):
    assert word in str(refused(seal(tmp_path / "a.epb", *hostile.MANIFESTS[what])))


def test_the_hostile_manifests_are_refused_for_what_is_hostile_in_them(tmp_path):
    opened = Bundle.open(seal(tmp_path / "a.epb", hostile.manifest([hostile.entry()]), b"x"), trusted=TRUSTED)
    assert opened.read("a") == b"x"


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(field=st.sampled_from([*sorted(MINIMAL), "schema_version", "task", "payloads"]), value=JUNK)
def test_any_value_in_any_field_opens_or_is_refused_in_one_line(tmp_path, field, value):
    data = {"schema_version": 1, "task": "detect", **MINIMAL, "payloads": [], field: value}
    path = seal(tmp_path / "a.epb", strict_json.canonical(data))
    try:
        opened = Bundle.open(path, trusted=TRUSTED)
    except EdgepruneError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    else:
        assert Manifest.from_json(opened.manifest.to_json()) == opened.manifest
        assert opened.manifest.shapes


@FUZZ
@given(st.binary(max_size=300))
def test_any_signed_bytes_are_refused_in_one_line(tmp_path, text):
    refused(seal(tmp_path / "a.epb", text))


@FUZZ
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_refused_in_one_line(tmp_path, data, with_magic):
    path = tmp_path / "a.epb"
    path.write_bytes(MAGIC + data if with_magic else data)
    refused(path, allow_untrusted=True)
