"""Fixtures: weights and images for builds."""

import pytest

from ..small import dataset, save, short


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save(short(), folder / "best.pt")
    dataset(folder / "data", train=16, val=4)
    return folder
