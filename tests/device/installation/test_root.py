import os

import pytest
from edgeprune_device import cli


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_does_not_install_into_the_folder_of_another_user(releases, make, capfd):
    releases.root.mkdir()
    os.chown(str(releases.root), 1000, 1000)
    assert cli.main(["install", str(make(1)), "--root", str(releases.root)]) == 2
    assert "belongs to user 1000; install as that user, not as root" in capfd.readouterr().err
    assert list(releases.root.iterdir()) == []
