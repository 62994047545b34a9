"""Tests of folders that are extended by adding a file."""

from edgeprune_device import plugins, runtimes


def test_new_file_is_listed_and_a_helper_is_not(tmp_path):
    for name in ("beta.py", "alpha.py", "_shared.py"):
        (tmp_path / name).write_text("")
    assert plugins.names([str(tmp_path)]) == ["alpha", "beta"]


def test_dash_is_converted_to_an_underscore():
    assert plugins.load("edgeprune_device.runtimes", "ort-cuda").__name__ == f"{runtimes.__name__}.ort_cuda"
