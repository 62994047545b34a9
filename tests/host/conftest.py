"""Fixtures of the host's tests. None needs ../shared; tests that need it are skipped without it."""

import os
import sys
from pathlib import Path

import pytest

from .small import dataset, save, short

# For the folder `fakes` of the device's tests.
sys.path.append(str(Path(__file__).parents[1] / "device"))

# Before the import of Ultralytics, so that its settings and our keys belong to the test run, not to the user.
os.environ.setdefault("YOLO_VERBOSE", "False")

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    os.environ["EDGEPRUNE_HOME"] = str(home / "edgeprune")
    os.environ["EDGEPRUNE_SPOOL"] = str(home / "spool")
    os.environ["EDGEPRUNE_REPORTS"] = str(home / "reports")
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")


@pytest.fixture(scope="session")
def shared():
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is missing: real weights and images")
    return SHARED


@pytest.fixture
def small():
    return short()


@pytest.fixture
def weights(small, tmp_path):
    return save(small, tmp_path / "best.pt")


@pytest.fixture
def data(tmp_path):
    return dataset(tmp_path / "data")
