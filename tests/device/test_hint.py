import os

import pytest
from edgeprune_device.hint import did_you_mean, no_such_file

COMMANDS = ("bench", "build", "compare", "export", "finetune", "engine", "releases")
OPTIONS = ("--target", "--qat", "--name", "--threads", "--max-drop", "-h")


@pytest.mark.parametrize(
    "word, known, said",
    [
        ("bnch", COMMANDS, "did you mean bench?"),
        ("fine", COMMANDS, "did you mean finetune?"),  # its beginning: engine is as near by letters
        ("xprt", COMMANDS, "did you mean export?"),
        ("BUILD", COMMANDS, "did you mean build?"),
        ("zzz", COMMANDS, ""),
        ("", COMMANDS, ""),
        ("bench", (), ""),
        ("--taget", OPTIONS, "did you mean --target?"),
        ("--max_drop", OPTIONS, "did you mean --max-drop?"),
        ("--thr", OPTIONS, "did you mean --threads?"),
        ("fp61", ("fp32", "fp16", "int8"), "did you mean fp16?"),
        ("int", ("int8", "int8-fp16", "fp16"), "did you mean int8 or int8-fp16?"),
    ],
)
def test_what_was_meant(word, known, said):
    assert did_you_mean(word, known) == said


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("best.pt", "data.yaml", "evil\x1b[2J.epb"):
        (tmp_path / name).write_text("")
    assert no_such_file("bset.pt") == "bset.pt: no such file; did you mean best.pt?"
    assert no_such_file(tmp_path / "data.yml") == f"{tmp_path}/data.yml: no such file; did you mean data.yaml?"
    assert no_such_file("zzz") == "zzz: no such file"
    assert no_such_file("runs/a.epb") == "runs/a.epb: no such file; there is no folder runs"
    assert no_such_file("best.pt/a") == "best.pt/a: no such file; best.pt cannot be looked into (not a directory)"
    assert "\x1b" not in no_such_file("evil2J.epb") and "evil?" in no_such_file("evil2J.epb")


def test_a_bundle_and_a_runtime_that_were_mistyped(tmp_path):
    from edgeprune_device import runtimes
    from edgeprune_device.errors import InputError
    from edgeprune_device.trust.bundle import Bundle

    (tmp_path / "demo.epb").write_bytes(b"")
    with pytest.raises(InputError, match=r"dmo.epb: no such file; did you mean demo.epb\?"):
        Bundle.open(os.path.join(str(tmp_path), "dmo.epb"))
    with pytest.raises(InputError, match=r"unknown runtime 'ort-cdua'; did you mean ort-cuda\? known: auto, "):
        runtimes.choose("ort-cdua")
