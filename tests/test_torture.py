"""A few tries of each fault of `make torture`."""
import sys

import pytest
from conftest import made_once
from faults import BATCH, FAULTS, prepare, try_one

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="permissions, limits and pipes as Linux has them")


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return made_once(tmp_path_factory, "torture", prepare)


@pytest.mark.parametrize("name, number", [
    (name, number) for name, (_, _, times, few) in FAULTS.items() for number in range(1 if times > BATCH else few)])
def test_survives(name, number, place):
    assert try_one(name, place, 1, number, FAULTS[name][3], short=True)
