"""folder: the YAML file in a folder."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.data import dataset


def test_folder_resolves_to_its_data_yaml(data):
    assert dataset.load(data.parent).sha256 == dataset.load(data).sha256
    (data.parent / "other.yaml").write_text("")
    assert dataset.load(data.parent).names  # of several files, the one with the folder's name
    data.rename(data.parent / "third.yaml")
    with pytest.raises(InputError, match=r"2 YAML files "):
        dataset.load(data.parent)
