import os

from edgeprune_device.probes import sysfs


def test_special_file_in_place_of_a_file_neither_hangs_nor_counts(tmp_path):
    os.mkfifo(str(tmp_path / "pipe"))
    os.symlink("/dev/zero", str(tmp_path / "endless"))
    os.symlink("loop", str(tmp_path / "loop"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "long").write_text("1" * 100000)
    for name in ("pipe", "endless", "loop", "folder", "empty", "binary", "long", "missing", "nul\0byte"):
        assert sysfs.number(tmp_path / name, 0, 1 << 70) is None
        assert sysfs.line(tmp_path / name) is None


def test_names_from_a_device_tree_are_cleaned():
    assert sysfs.clean("VDD IN\x1b[31m/\n") == "VDD_IN_31m"
    assert sysfs.clean("\u202e") == "unnamed" and len(sysfs.clean("x" * 500)) == 48
