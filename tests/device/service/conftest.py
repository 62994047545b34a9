import numpy as np
import pytest
from conftest import png
from fakes.service import Root, Service


@pytest.fixture
def root(tmp_path, manifest):
    return Root(tmp_path / "root", manifest)


@pytest.fixture
def folder(tmp_path):
    """Forty images."""
    made = tmp_path / "pictures"
    made.mkdir()
    for i in range(40):
        (made / f"{i:03d}.png").write_bytes(png(np.full((48, 80, 3), i, np.uint8)))
    return made


@pytest.fixture
def serve(tmp_path, root):
    """serve("--source", …) -> the service on the root, with a short window."""

    def made(*arguments, **kwargs):
        return Service(tmp_path, "--root", root.path, "--window", "1", *arguments, **kwargs)

    return made
