import os

import pytest
from edgeprune_device.hint import did_you_mean, no_such_file, unknown

COMMANDS = ("bench", "build", "compare", "export", "finetune", "engine", "releases")
OPTIONS = ("--target", "--qat", "--name", "--threads", "--max-drop", "-h")


@pytest.mark.parametrize(
    "word, known, suggestion",
    [
        ("bnch", COMMANDS, "did you mean bench?"),
        ("fine", COMMANDS, "did you mean finetune?"),  # a prefix; engine is equally similar by letters
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
def test_suggestion_for_a_mistyped_word(word, known, suggestion):
    assert did_you_mean(word, known) == suggestion


def test_error_of_an_unknown_word_lists_the_known_ones():
    assert unknown("--cuda: unknown backend", "xyz", ["auto", "pycuda", "ctypes"]) == (
        "--cuda: unknown backend (found 'xyz', expected auto, pycuda or ctypes)"
    )
    assert unknown("a", "fp61", ["fp16"]) == "a (found 'fp61', expected fp16); did you mean fp16?"


def test_error_of_a_missing_file_suggests_a_similar_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("best.pt", "data.yaml", "evil\x1b[2J.epb"):
        (tmp_path / name).write_text("")
    assert no_such_file("bset.pt") == "bset.pt: no such file; did you mean best.pt?"
    assert no_such_file(tmp_path / "data.yml") == f"{tmp_path}/data.yml: no such file; did you mean data.yaml?"
    assert no_such_file("zzz") == "zzz: no such file"
    assert no_such_file("runs/a.epb") == "runs/a.epb: no such file; the folder runs does not exist"
    assert no_such_file("best.pt/a") == "best.pt/a: no such file; best.pt cannot be read (not a directory)"
    assert no_such_file("https:/a.org/b.pt") == "https://a.org/b.pt: a URL; download the file first, and give its path"
    assert no_such_file(tmp_path, inside=["b.pt"]) == f"{tmp_path}: a folder, not a file"
    assert (
        no_such_file(tmp_path, inside=["b.pt", "best.pt"])
        == f"{tmp_path}: a folder, not a file; give {tmp_path}/best.pt"
    )
    assert "\x1b" not in no_such_file("evil2J.epb") and "evil?" in no_such_file("evil2J.epb")


def test_mistyped_bundle_and_runtime_get_a_suggestion(tmp_path):
    from edgeprune_device import runtimes
    from edgeprune_device.errors import InputError
    from edgeprune_device.trust.bundle import Bundle

    (tmp_path / "demo.epb").write_bytes(b"")
    with pytest.raises(InputError, match=r"dmo.epb: no such file; did you mean demo.epb\?"):
        Bundle.open(os.path.join(str(tmp_path), "dmo.epb"))
    with pytest.raises(InputError, match=r"\(found 'ort-cdua', expected auto, .*\); did you mean ort-cuda\?"):
        runtimes.choose("ort-cdua")
