"""recorded: what is taken for a report, and what is none."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.comparison import recorded


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_REPORTS", str(tmp_path / "reports-of-mine"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("reports", True), ("r.json", True), ("none/r.json", True), ("0123ab", True), ("f" * 64, True),
        ("0123a", False), ("f" * 65, False), ("0123AB", False), ("best.pt", False), ("a.epb", False),
    ],
)  # fmt: skip
def test_a_report_is_a_file_an_id_or_all_of_them(text, found):
    assert recorded.is_recorded(text) is found


def test_a_file_may_have_the_name_of_an_id(here):
    for name in ("0123ab", "reports"):
        (here / name).write_text("a model")
        assert not recorded.is_recorded(name)
    (here / "a.json").write_text("{}")
    assert recorded.is_recorded("a.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reports", "has no reports; edgeprune collect"),
        ("0123ab", "no report has such an id"),
        ("none.json", r"none\.json: cannot be read \(no such file"),
        ("a.json", r"a\.json"),
    ],
)
def test_what_is_no_report_is_refused(here, text, words):
    (here / "a.json").write_text('{"schema_version": 1}')
    with pytest.raises(InputError, match=words):
        recorded.recorded(text)
