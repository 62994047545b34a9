import os

from edgeprune_device import clock
from edgeprune_device.service import status


def test_what_is_written_is_read_while_it_is_fresh(tmp_path):
    path = tmp_path / "status.json"
    assert status.read(path, fresh_s=5) is None
    data = {"pid": os.getpid(), "boot_id": clock.now()["boot_id"], "boot_s": status.boot_s(), "state": "running"}
    status.write(path, data)
    assert status.read(path, fresh_s=5) == {"schema_version": 1, **data}
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]
    status.write(path, {**data, "boot_s": data["boot_s"] - 9})
    assert status.read(path, fresh_s=5) is None and status.read(path, fresh_s=60)["state"] == "running"
