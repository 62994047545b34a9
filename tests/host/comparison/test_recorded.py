"""recorded: arguments that name reports, and invalid reports."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.comparison import recorded


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_REPORTS", str(tmp_path / "reports-of-mine"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("reports", True), ("r.json", True), ("none/r.json", True), ("0123ab", True), ("f" * 64, True),
        ("0123a", False), ("f" * 65, False), ("0123AB", False), ("best.pt", False), ("a.epb", False),
    ],
)  # fmt: skip
def test_report_is_named_by_a_file_an_id_or_reports(text, expected):
    assert recorded.is_recorded(text) is expected


def test_file_named_like_an_id_is_a_model(here):
    for name in ("0123ab", "reports"):
        (here / name).write_text("a model")
        assert not recorded.is_recorded(name)
    (here / "a.json").write_text("{}")
    assert recorded.is_recorded("a.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reports", "no reports; fetch reports with edgeprune collect"),
        ("0123ab", "no report has this id"),
        ("none.json", r"none\.json: cannot be read \(no such file"),
        ("a.json", r"a\.json"),
    ],
)
def test_invalid_reports_are_refused(here, text, words):
    (here / "a.json").write_text('{"schema_version": 1}')
    with pytest.raises(InputError, match=words):
        recorded.recorded(text)
