import pytest
from edgeprune_device.hint import did_you_mean

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
