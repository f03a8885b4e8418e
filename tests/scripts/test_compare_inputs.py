"""What a comparison cannot be made with is refused before anything is made, in one line that names the flag."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.compare_inputs import check_fits, check_least, entries
from scripts.contestants import Entry
from tests.saved_student import save_student, tiny_pipeline


def test_networks_are_those_that_were_named():
    found = entries(Path("t"), None, ["mine=runs/a"])
    assert found == [Entry("teacher", Path("t")), Entry("mine", Path("runs/a"))]
    with pytest.raises(ValueError, match="no network to compare"):
        entries(None, None, [])
    with pytest.raises(ValueError, match="NAME=RUN, got 'mine'"):
        entries(None, None, ["mine"])


def test_numbers_too_small_name_their_flag():
    check_least(steps=((1, 25), 1), max_clips=((2,), 2))
    with pytest.raises(ValueError, match="--max-clips must be at least 2, got 0"):
        check_least(max_clips=((0,), 2))
    with pytest.raises(ValueError, match="--steps must be at least 1, got none"):
        check_least(steps=((), 1))


def test_a_network_must_fit_its_name_and_the_data(tmp_path):
    run = save_student(tmp_path / "student")
    pipeline = tiny_pipeline()
    data = SimpleNamespace(duration_s=1.0, sequence=pipeline.codec.sequence, info={"config": {"encoders": "embedded"}})
    check_fits(Entry("student", run), pipeline, data)
    check_fits(Entry("other", run), pipeline, data)
    with pytest.raises(ValueError, match=r"--teacher .* jumps, as students do; exchange the two"):
        check_fits(Entry("teacher", run), pipeline, data)
    for change, told in (
        ({"duration_s": 2.0}, "duration in seconds is 1.0, that of the data is 2.0"),
        ({"sequence": replace(pipeline.codec.sequence, sample_rate=32_000)}, "sample rate is 16000"),
        ({"info": {"config": {"encoders": "mmaudio"}}}, "set of encoders is embedded, that of the data is mmaudio"),
    ):
        with pytest.raises(ValueError, match=told):
            check_fits(Entry("student", run), pipeline, SimpleNamespace(**(vars(data) | change)))
