"""Which process of a launch this is, from the variables that launchers set."""

import pytest

from distill.processes import is_single_in_place_of_several, this_process

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU", "PMI_SIZE")


@pytest.fixture
def launched(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def test_without_a_launcher_there_is_one_process(launched):
    process = this_process()
    assert (process.rank, process.world_size, process.local_rank) == (0, 1, 0)
    assert process.main
    assert not process.several


def test_what_a_launcher_sets_is_read_at_each_call(launched):
    launched(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", MASTER_ADDR="host", MASTER_PORT="29500")
    process = this_process()
    assert process == (5, 8, 1, "host:29500")
    assert process.several
    assert not process.main


def test_a_number_that_is_none_is_named(launched):
    launched(WORLD_SIZE="eight")
    with pytest.raises(ValueError, match=r"WORLD_SIZE must be a whole number.*'eight'"):
        this_process()


def test_accelerates_single_process_is_told_from_one_of_several(launched):
    assert not is_single_in_place_of_several()
    launched(ACCELERATE_USE_CPU="true", MASTER_PORT="29500")
    assert is_single_in_place_of_several()
    launched(PMI_SIZE="1")
    assert not is_single_in_place_of_several()
