import pytest
from edgeprune_device import cli
from edgeprune_device.commands.releases import elsewhere
from edgeprune_device.releases import Releases


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "root")


def test_where_is_a_folder_if_it_exists_and_otherwise_a_drone(releases, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    releases.root.mkdir()
    for where in ("root", "./root", "root/", "no/such", str(releases.root)):
        assert cli.main(["releases", where]) == 0, where
        assert "no releases" in capfd.readouterr().out
    (tmp_path / "file").touch()
    assert cli.main(["releases", "./file"]) == 2 and cli.main(["rollback", "./file"]) == 2
    assert capfd.readouterr().err.count("\n") == 2
    for where in ("pilot@drone", "drone:/opt/edgeprune"):
        assert elsewhere(where)
