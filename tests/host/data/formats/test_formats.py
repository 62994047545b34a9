"""formats: data sets that need a download are refused."""

import pytest
from edgeprune_device.errors import InputError

from edgeprune.data import dataset


@pytest.mark.parametrize("given", ["https://host/a.yaml", "/b/https:/host/a.zip", "ul://user/datasets/a", "a.ndjson"])
def test_nothing_is_downloaded(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ndjson").write_text("{}\n")
    with pytest.raises(InputError, match="downloads nothing"):
        dataset.load(given)
