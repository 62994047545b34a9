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
from edgeprune_device.vision import tasks
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


def test_layout_matches_the_documentation(tmp_path):
    data = small(tmp_path / "a.epb").path.read_bytes()
    magic, version, length = struct.unpack_from("<8sII", data)
    assert (magic, version) == (b"\x89EPB\r\n\x1a\n", 1)
    assert data[16:48] == bytes(KEY.verify_key)
    text = data[112 : 112 + length]
    KEY.verify_key.verify(data[:48] + text, data[48:112])
    assert strict_json.canonical(json.loads(text)) == text
    assert data[112 + length :] == b"hello"


def test_same_input_gives_the_same_bytes(tmp_path):
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
        # Accepting unknown keys does not accept a changed byte.
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
    Bundle.open(path, trusted=TRUSTED)  # the original file is valid, so only the flips were refused


def test_every_truncation_and_any_trailing_byte_is_refused(tmp_path):
    data = small(tmp_path / "a.epb").path.read_bytes()
    path = tmp_path / "b.epb"
    for n in range(len(data)):
        path.write_bytes(data[:n])
        refused(path)
    path.write_bytes(data + b"\0")
    assert "followed by extra data" in str(refused(path))


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


def test_signature_of_another_key_under_a_trusted_name_is_refused(tmp_path):
    data = bytearray(small(tmp_path / "a.epb").path.read_bytes())
    length = struct.unpack_from("<I", data, 12)[0]
    data[48:112] = SigningKey.generate().sign(bytes(data[:48] + data[112 : 112 + length])).signature
    (tmp_path / "b.epb").write_bytes(data)
    assert "invalid signature" in str(refused(tmp_path / "b.epb"))


def test_revoked_key_is_always_refused(tmp_path, home):
    path, mark = small(tmp_path / "a.epb").path, keys.fingerprint(KEY.verify_key)
    keys.trust("host", KEY.verify_key)
    assert Bundle.open(path).trusted
    keys.revoke(mark)
    envelope = path.read_bytes()[: -len(b"hello")]
    for options in ({}, {"allow_untrusted": True}, {"trusted": TRUSTED}, {"trusted": TRUSTED, "allow_untrusted": True}):
        error = refused(path, **{"trusted": None, **options})
        assert isinstance(error, SignatureError) and mark in str(error) and "is revoked here" in str(error)
        with pytest.raises(SignatureError, match=r"^x: .* is revoked here"):
            read_manifest(envelope, "x", **options)
    with pytest.raises(SignatureError, match="is revoked here"):
        small(tmp_path / "b.epb")
    assert not (tmp_path / "b.epb").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n" + b"\0" * 200])
def test_file_that_is_not_a_bundle_is_refused(tmp_path, content):
    (tmp_path / "a.epb").write_bytes(content)
    assert type(refused(tmp_path / "a.epb")) is InputError


def test_newer_format_is_refused(tmp_path):
    data = bytearray(small(tmp_path / "a.epb").path.read_bytes())
    data[8] = 2
    (tmp_path / "b.epb").write_bytes(data)
    assert "unknown bundle format (found 2" in str(refused(tmp_path / "b.epb"))


def test_missing_file_and_folder_are_refused(tmp_path):
    assert "no such file" in str(refused(tmp_path / "none.epb"))
    assert "found a folder, expected a file" in str(refused(tmp_path))


def test_envelope_alone_is_verified_like_a_bundle(tmp_path):
    bundle = small(tmp_path / "a.epb")
    data = bundle.path.read_bytes()
    envelope = data[: bundle.envelope_bytes]
    assert data[bundle.envelope_bytes :] == b"hello"
    assert read_manifest(envelope, "x", TRUSTED) == (bundle.manifest, KEY.verify_key, True)
    with pytest.raises(SignatureError, match=r"^x: signing key not trusted on this machine \(found SHA256:"):
        read_manifest(envelope, "x")
    assert read_manifest(envelope, "x", allow_untrusted=True)[2] is False
    for i in range(len(envelope)):
        for broken in (envelope[:i], envelope[:i] + bytes([envelope[i] ^ 1]) + envelope[i + 1 :]):
            with pytest.raises(EdgepruneError, match=r"^x: "):
                read_manifest(broken, "x", TRUSTED, allow_untrusted=True)
    with pytest.raises(SignatureError, match="followed by extra data"):
        read_manifest(data, "x", TRUSTED)


def test_change_after_opening_is_detected(bundle):
    data = bytearray(bundle.path.read_bytes())
    data[-1] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(SignatureError, match=r"evaluation\.zip: does not match"):
        bundle.read("evaluation.zip")


def test_missing_payload_is_an_error(bundle):
    with pytest.raises(InputError, match=r"no such payload: 'x' \(found model"):
        bundle.read("x")


def test_invalid_manifest_or_payload_writes_nothing(tmp_path):
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
    with pytest.raises(InputError, match=r"manifest is too large"):
        Bundle.write(path, {**MINIMAL, "lineage": {"x": "y" * 2_000_000}}, {}, KEY)
    assert not [p for p in tmp_path.iterdir() if p.is_file()]


@pytest.mark.parametrize("what", hostile.MANIFESTS)
def test_signed_hostile_manifests_are_refused(tmp_path, what):
    error = refused(seal(tmp_path / "a.epb", *hostile.MANIFESTS[what]))
    assert len(str(error)) < 500


@pytest.mark.parametrize(
    "text, word",
    [
        (b"{}", "schema_version"),
        (b"[]", "object"),
        (b'{"schema_version":1,"schema_version":1}', "duplicate key"),
        (b'{"schema_version":NaN}', "NaN"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "deeply"),
        (b"9" * 100_000, "too long"),
        (b"\xff\xfe", "JSON"),
    ],
)
def test_signed_malformed_manifests_are_refused(tmp_path, text, word):
    assert word in str(refused(seal(tmp_path / "a.epb", text)))


@pytest.mark.parametrize(
    "what, word",
    [
        ("larger than the file", "cut off"),
        ("smaller than the file", "followed by extra data"),
        ("larger than the limit together", "at most"),
        ("overlapping", "expected 2"),
        ("a gap", "expected 1"),
        ("a name twice but for case", "duplicate name"),
        ("another hash", "does not match"),
        ("too many", "at most 64"),
        ("a payload's name is '/evil'", "payloads[0].name: must match"),
    ],
)
def test_error_names_the_fault_of_a_payload_table(tmp_path, what, word):
    assert word in str(refused(seal(tmp_path / "a.epb", *hostile.MANIFESTS[what])))


def test_hostile_manifests_are_refused_for_their_hostile_part(tmp_path):
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
        assert tasks.get(opened.manifest.task).shapes(opened.manifest)


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


@pytest.mark.parametrize(
    "model, why",
    [
        (hostile.reads_a_file(), "the tensor bias is stored in another file (secret)"),
        (hostile.brings_an_engine(), "the node /engine refers to a built engine (EPContext)"),
    ],
)
def test_model_that_loads_other_files_is_neither_packed_nor_opened(tmp_path, model, why):
    models = {"fp16": {"payload": None, "reason": "none"}, "fp32": {"payload": "m.onnx"}}
    with pytest.raises(InputError) as caught:
        Bundle.write(tmp_path / "a.epb", {**MINIMAL, "models": models}, {"m.onnx": model}, KEY)
    assert why in str(caught.value) and list(tmp_path.glob("*.epb")) == []
    text = hostile.manifest([hostile.entry("m.onnx", model)], models=models)
    path = seal(tmp_path / "b.epb", text, model)
    assert f"{path}: m.onnx: {why}; export the model as one ONNX file" in str(refused(path))
    assert f"m.onnx: {why}" in str(refused(path, trusted=[], allow_untrusted=True))
    assert Bundle.open(
        seal(tmp_path / "c.epb", hostile.manifest([hostile.entry("x", model)]), model), TRUSTED
    )  # not a model


def test_model_larger_than_protobuf_permits_is_refused(tmp_path, monkeypatch):
    from edgeprune_device.trust import bundle as module

    monkeypatch.setattr(module, "MAX_MODEL_BYTES", 4)
    text = hostile.manifest([hostile.entry("m.onnx", b"12345")], models={"fp32": {"payload": "m.onnx"}})
    error = refused(seal(tmp_path / "a.epb", text, b"12345"))
    assert "m.onnx: too large (found 5 bytes, expected at most 4)" in str(error)
