"""A few tries of each fault of `make torture`."""
import sys

import pytest
from conftest import made_once
from faults import BATCH, FAULTS, prepare, try_one

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="permissions, limits and pipes as Linux has them")
TRIES = [(name, number) for name, fault in FAULTS.items()
         for number in range(1 if fault.n_tries > BATCH else fault.n_short)]


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return made_once(tmp_path_factory, "torture", prepare)


@pytest.mark.parametrize("name, number", TRIES)
def test_survives(name, number, place):
    assert try_one(name, place, 1, number, FAULTS[name].n_short, short=True)
