"""The layout of both packages: folders are ordered, and modules import only downwards."""

import pytest

from tests import layout


@pytest.mark.parametrize("package", layout.PACKAGES)
def test_modules_import_only_downwards(package):
    assert layout.upwards(package) == []


@pytest.mark.parametrize("package", layout.PACKAGES)
def test_modules_and_folders_form_no_circle(package):
    assert layout.circles(layout.imports(package)) == []
    assert layout.circles(layout.arrows(package)) == []


@pytest.mark.parametrize("package", layout.PACKAGES)
def test_every_folder_is_in_the_order_and_has_a_docstring(package):
    assert set(layout.arrows(package)) == set(layout.ORDER[package])
    assert all(line.strip() for line in layout.map_of(package).splitlines())


def test_the_root_of_the_host_stays_small():
    assert len(layout._root_modules("edgeprune")) <= 6


@pytest.mark.parametrize("package", layout.PACKAGES)
def test_contributing_contains_the_current_map(package):
    assert layout.map_of(package) in (layout.ROOT / "CONTRIBUTING.md").read_text()


#: Modules or folders that a test file of another name covers, because they share its fixtures or are a few lines long.
ELSEWHERE = {
    "edgeprune": {
        "api/": "api/test_api.py",
        "commands/": "commands/test_commands.py",
        "comparison/page/": "comparison/test_page.py",
        "demo/": "demo/test_scenes.py",
        "analysis/table.py": "analysis/test_chart.py",
        "cache.py": "data/formats/test_cache.py",
        "comparison/compare.py": "commands/test_commands.py",
        "comparison/comparison.py": "comparison/test_page.py",
        "comparison/facts.py": "comparison/test_page.py",
        "comparison/row.py": "comparison/test_recorded.py",
        "data/pictures.py": "data/test_dataset.py",
        "drones/bootstrap/": "drones/test_setup.py",
        "drones/deploy/mount.py": "drones/deploy/test_image.py",
        "pruning/criteria/l1.py": "pruning/criteria/test_slices.py",
        "pruning/criteria/l2.py": "pruning/criteria/test_slices.py",
        "quantize/reference.py": "measuring/test_sessions.py",
        "tasks/task.py": "tasks/test_obb.py",
        "workflow/job.py": "workflow/test_build.py",
    },
    "edgeprune_device": {
        "commands/": "commands/test_commands.py",
        "benchmark/options.py": "benchmark/test_run.py",
        "installation/options.py": "installation/test_install.py",
        "options.py": "test_option.py",
        "interpreter.py": "test_current_folder.py",
        "probes/": "probes/test_discovery.py",
        "runtimes/": "runtimes/test_runtimes.py",
        "service/protocol.py": "service/test_child.py",
        "sources/": "sources/test_sources.py",
        "vision/postprocess.py": "vision/test_detect.py",
        "vision/task.py": "vision/test_tasks.py",
    },
}


@pytest.mark.parametrize("package", layout.PACKAGES)
def test_every_module_has_a_test_file_of_its_name_or_a_listed_one(package):
    side = layout.ROOT / "tests" / {"edgeprune": "host", "edgeprune_device": "device"}[package]
    missing = layout.without_a_test_file(package)
    known = ELSEWHERE[package]
    folders = tuple(name for name in known if name.endswith("/"))
    assert [name for name in missing if name not in known and not name.startswith(folders)] == []
    assert [name for name in known if not any(m.startswith(name) for m in missing)] == []
    assert [file for file in known.values() if not (side / file).exists()] == []


def test_no_folder_has_the_name_of_a_verb():
    verbs = {"build", "prune", "export", "compare", "analyze", "finetune"}
    assert not verbs & set(layout.ORDER["edgeprune"])


def test_an_upward_import_and_a_circle_are_found(tmp_path, monkeypatch):
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
