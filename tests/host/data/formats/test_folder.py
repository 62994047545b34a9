"""folder: the one YAML in it."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.data import dataset


def test_a_folder_is_its_yaml(data):
    assert dataset.load(data.parent).sha256 == dataset.load(data).sha256
    (data.parent / "other.yaml").write_text("")
    assert dataset.load(data.parent).names  # of several that of the folder's name
    data.rename(data.parent / "third.yaml")
    with pytest.raises(InputError, match="holds 2 YAML files"):
        dataset.load(data.parent)
