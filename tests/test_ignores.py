"""Every `type: ignore` has a code and a reason."""

from . import ignores


def test_every_ignore_has_a_code_and_a_reason():
    assert [place for place, _, whole in ignores.ignores() if not whole] == []


def test_an_ignore_without_a_reason_is_reported(tmp_path, monkeypatch):
    (tmp_path / "edgeprune").mkdir()
    (tmp_path / "edgeprune" / "a.py").write_text(
        "a = 1  # type: ignore\nb = 2  # type: ignore[misc]\nc = 3  # type: ignore[misc]  # torch's stubs lack it\n"
        'd = "# type: ignore"\n'
    )
    monkeypatch.setattr(ignores, "ROOT", tmp_path)
    assert [(place, whole) for place, _, whole in ignores.ignores()] == [
        ("edgeprune/a.py:1", False), ("edgeprune/a.py:2", False), ("edgeprune/a.py:3", True),
    ]  # fmt: skip
