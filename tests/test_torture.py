"""A few tries of each fault of `make torture`."""
import pytest
from faults import BATCH, FAULTS, try_one


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("torture")


@pytest.mark.parametrize("name, number", [
    (name, number) for name, (_, _, times, few) in FAULTS.items() for number in range(1 if times > BATCH else few)])
def test_survives(name, number, place):
    assert try_one(name, place, 1, number, FAULTS[name][3], short=True)
