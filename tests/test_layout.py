"""The layout of both packages: folders have an order, and imports only run down."""

import pytest

from tests import layout


@pytest.mark.parametrize("package", layout.PACKAGES)
def test_imports_only_run_down(package):
    assert layout.upwards(package) == []


@pytest.mark.parametrize("package", layout.PACKAGES)
def test_no_circle_between_modules_or_folders(package):
    assert layout.circles(layout.imports(package)) == []
    assert layout.circles(layout.arrows(package)) == []


@pytest.mark.parametrize("package", layout.PACKAGES)
def test_every_folder_has_its_place_in_the_order_and_says_what_it_is(package):
    assert set(layout.arrows(package)) == set(layout.ORDER[package])
    assert all(line.strip() for line in layout.map_of(package).splitlines())


def test_the_root_of_the_host_stays_small():
    assert len(layout._root_modules("edgeprune")) <= 6


@pytest.mark.parametrize("package", layout.PACKAGES)
def test_contributing_shows_the_map_that_the_folders_give(package):
    assert layout.map_of(package) in (layout.ROOT / "CONTRIBUTING.md").read_text()


def test_no_folder_hides_a_verb():
    verbs = {"build", "prune", "export", "compare", "analyze", "finetune"}
    assert not verbs & set(layout.ORDER["edgeprune"])


def test_an_upward_import_and_a_circle_would_be_found(tmp_path, monkeypatch):
    package = tmp_path / "small"
    for name, text in {
        "low/__init__.py": "", "high/__init__.py": "",
        "low/a.py": "def f():\n    from ..high import b\n", "high/b.py": "from small.low.a import f\n",
    }.items():  # fmt: skip
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(layout, "PACKAGES", {"small": package})
    monkeypatch.setattr(layout, "ORDER", {"small": ("low", "high")})
    assert layout.upwards("small") == ["small.low.a -> small.high.b"]
    assert layout.circles(layout.imports("small")) == [["small.high.b", "small.low.a"]]
    assert layout.circles(layout.arrows("small")) == [["high", "low"]]
