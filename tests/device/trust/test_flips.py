"""Tests that a bundle with one changed byte is refused before any of it is parsed.

Every function that could parse a bundle's bytes is watched: JSON, zip, pickle, images, ONNX Runtime, our own ONNX
reader, and the functions that build and load engines. An unchanged bundle reaches them, which proves that the watch
works. If a byte of a payload is changed, the manifest before it is still intact and signed, so parsing it is allowed.
"""

import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile

import pytest
from edgeprune_device import cli, onnx_file, schema
from edgeprune_device.engine import cache
from edgeprune_device.errors import EdgepruneError
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.trust.manifest import Manifest
from edgeprune_device.vision import preprocess

#: The functions that may parse a bundle's bytes.
PARSERS = {
    "json": (json.JSONDecoder, "decode"),
    "manifest": (Manifest, "from_json"),
    "zip": (zipfile.ZipFile, "__init__"),
    "pickle.load": (pickle, "load"),
    "pickle.loads": (pickle, "loads"),
    "pickle.Unpickler": (pickle, "Unpickler"),
    "picture": (preprocess, "opened"),
    "onnx": (onnx_file, "_fields"),
    "engine": (cache.Cache, "engine"),
    "process": (subprocess, "Popen"),
}


@pytest.fixture
def calls(monkeypatch, fake_tensorrt):
    """[(name, arguments …)] of every call of a parser; the calls still run."""
    schema.load("manifest")  # the schema is part of the package and is read once
    keys.load_or_create("report")
    module, made = fake_tensorrt("10.3.0"), []  # FAKE: the surface of the real one
    watched = {**PARSERS, **{f"TensorRT's {name}": (module, name) for name in ("OnnxParser", "Runtime", "Builder")}}
    if importlib.util.find_spec("onnxruntime"):
        watched["ONNX Runtime"] = (importlib.import_module("onnxruntime"), "InferenceSession")

    def watch(name, owner, attribute):
        real = getattr(owner, attribute)

        def call(*args, **options):
            if not (name == "zip" and args[1] in sys.path):  # Python searches a zip on sys.path for entry points
                made.append((name, *args))
            return real(*args, **options)

        monkeypatch.setattr(owner, attribute, call)

    for name, (owner, attribute) in watched.items():
        watch(name, owner, attribute)
    return made


def flips(data, count, seed):
    """(position, the byte in its place), `count` times."""
    rng = random.Random(seed)
    for _ in range(count):
        position = rng.randrange(len(data))
        yield position, data[position] ^ rng.randrange(1, 256)


def refuse(bundle, calls, count, seed, attempt):
    """Write `count` flips into the file, one at a time, let `attempt(path)` fail, and put the byte back."""
    data, length = bundle.path.read_bytes(), bundle.envelope_bytes
    text, in_envelope = data[112:length].decode("utf-8"), 0
    with open(bundle.path, "r+b", buffering=0) as stream:
        for position, value in flips(data, count, seed):
            stream.seek(position)
            stream.write(bytes([value]))
            calls.clear()
            attempt(bundle.path)
            where = f"byte {position} of {len(data)}, the envelope has {length}"
            if position < length:
                in_envelope += 1
                assert not calls, where
            for name, *args in calls:
                assert name == "manifest" or (name == "json" and args[1] == text), where
            stream.seek(position)
            stream.write(data[position : position + 1])
    assert 0.1 * count < in_envelope < 0.9 * count  # both kinds occurred
    assert Bundle.open(bundle.path).sha256 == bundle.sha256  # nothing but the flips was wrong


def is_refused(path):
    for allow_untrusted in (False, True):
        with pytest.raises(EdgepruneError) as caught:
            Bundle.open(path, allow_untrusted=allow_untrusted)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_intact_bundle_reaches_the_watched_parsers(capsys, bundle, calls):
    def reached(*args):
        calls.clear()
        assert cli.main([args[0], str(bundle.path), *args[1:]]) == 0, capsys.readouterr().err
        return {name for name, *_ in calls}

    assert reached("info") == {"json", "manifest", "onnx"}
    quick = ("--seconds", "0.05", "--warmup", "0.05", "--no-spool")
    assert {"json", "manifest", "zip", "picture"} <= reached("bench", "--runtime", "null", *quick)
    assert {"json", "manifest", "engine", "process"} <= reached("engine", "--precision", "fp32")
    assert {"TensorRT's Runtime"} <= reached(
        "bench", "--runtime", "trt", "--precision", "fp32", "--no-accuracy", *quick
    )
    if importlib.util.find_spec("onnxruntime"):
        assert "ONNX Runtime" in reached("bench", "--runtime", "ort", *quick)


def test_ten_thousand_random_flips_are_refused_before_any_parser(bundle, calls):
    refuse(bundle, calls, 10_000, 6, is_refused)


@pytest.mark.parametrize("command", ["info", "unpack", "bench", "engine"])
def test_commands_refuse_flips_in_one_line_and_write_nothing(capsys, bundle, calls, command, tmp_path, monkeypatch):
    folder = tmp_path / "there"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def attempt(path):
        assert cli.main([command, str(path)]) in (1, 2)
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"edgeprune: error: {path}: ") and err.count("\n") == 1
        assert os.listdir(".") == []

    refuse(bundle, calls, 250, 7, attempt)
