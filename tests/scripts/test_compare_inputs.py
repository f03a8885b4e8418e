"""What a comparison cannot be made with is refused before anything is made, in one line that names the flag."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.compare import Compare, _tasks, cli
from scripts.compare_inputs import check_fits, check_least, entries
from scripts.contestants import Entry
from teacher.files import FolderLock
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


@dataclass(frozen=True)
class _Clip:
    has_video: bool
    caption: str


@pytest.mark.parametrize(
    ("clips", "tasks", "said"),
    [
        ([_Clip(True, "a")] * 2, ("vta", "tta"), []),
        ([_Clip(False, "a")] * 5, ("tta",), ["vta is left out: 0 test clips of data with picture, 2 are needed"]),
        ([_Clip(True, "")] * 5, ("vta",), ["tta is left out: 0 test clips of data with words, 2 are needed"]),
        ([_Clip(True, "a"), *[_Clip(False, "b")] * 3], ("tta",), ["vta is left out: 1 test clips"]),
    ],
)
def test_tasks_follow_what_the_data_has(clips, tasks, said):
    told = []
    assert _tasks(Compare(data=Path("data")), clips, told=told.append) == tasks
    assert [line.startswith(start) for line, start in zip(told, said, strict=True)] == [True] * len(said)
    assert _tasks(Compare(tasks=("vta",)), clips, told=told.append) == ("vta",)
    with pytest.raises(ValueError, match="data has 1 test clips, too few for either task"):
        _tasks(Compare(data=Path("data")), clips[:1], told=told.append)


def test_a_comparison_that_is_being_written_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mf-compare", "--out", str(tmp_path)])
    with FolderLock(tmp_path, what="the comparison"), pytest.raises(SystemExit) as left:
        cli()
    assert left.value.code == 2
    assert f"{tmp_path}: the comparison is being written by process {os.getpid()}" in capsys.readouterr().err
