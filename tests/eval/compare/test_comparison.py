"""What a comparison cannot be made with is refused before anything is made, in one line that names the flag."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from eval.compare.comparison import ComparisonConfig, check_least, tasks_of
from eval.compare.entries import NamedRun, check_fits, named_runs
from scripts.compare import cli
from teacher.files import FolderLock
from tests.saved_student import save_student, tiny_pipeline


def test_networks_are_those_that_were_named():
    found = named_runs(Path("t"), None, ["mine=runs/a"])
    assert found == [NamedRun("teacher", Path("t")), NamedRun("mine", Path("runs/a"))]
    with pytest.raises(ValueError, match="no network to compare"):
        named_runs(None, None, [])
    with pytest.raises(ValueError, match="NAME=RUN, got 'mine'"):
        named_runs(None, None, ["mine"])


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
    check_fits(NamedRun("student", run), pipeline, data)
    check_fits(NamedRun("other", run), pipeline, data)
    with pytest.raises(ValueError, match=r"--teacher .* jumps, as students do; exchange the two"):
        check_fits(NamedRun("teacher", run), pipeline, data)
    for change, reported in (
        ({"duration_s": 2.0}, "duration in seconds is 1.0, that of the data is 2.0"),
        ({"sequence": replace(pipeline.codec.sequence, sample_rate=32_000)}, "sample rate is 16000"),
        ({"info": {"config": {"encoders": "mmaudio"}}}, "set of encoders is embedded, that of the data is mmaudio"),
    ):
        with pytest.raises(ValueError, match=reported):
            check_fits(NamedRun("student", run), pipeline, SimpleNamespace(**(vars(data) | change)))


@dataclass(frozen=True)
class _Clip:
    has_video: bool
    caption: str


@pytest.mark.parametrize(
    ("clips", "tasks", "lines"),
    [
        ([_Clip(True, "a")] * 2, ("vta", "tta"), []),
        ([_Clip(False, "a")] * 5, ("tta",), ["vta is left out: 0 test clips of data with picture, 2 are needed"]),
        ([_Clip(True, "")] * 5, ("vta",), ["tta is left out: 0 test clips of data with captions, 2 are needed"]),
        ([_Clip(True, "a"), *[_Clip(False, "b")] * 3], ("tta",), ["vta is left out: 1 test clips"]),
    ],
)
def test_tasks_follow_what_the_data_has(clips, tasks, lines):
    reported = []
    assert tasks_of(ComparisonConfig(data=Path("data")), clips, report=reported.append) == tasks
    assert [line.startswith(start) for line, start in zip(reported, lines, strict=True)] == [True] * len(lines)
    assert tasks_of(ComparisonConfig(tasks=("vta",)), clips, report=reported.append) == ("vta",)
    with pytest.raises(ValueError, match="data has 1 test clips, too few for either task"):
        tasks_of(ComparisonConfig(data=Path("data")), clips[:1], report=reported.append)


def test_a_comparison_that_is_being_written_is_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["mf-compare", "--out", str(tmp_path)])
    with FolderLock(tmp_path, what="the comparison"), pytest.raises(SystemExit) as left:
        cli()
    assert left.value.code == 2
    assert f"{tmp_path}: the comparison is being written by process {os.getpid()}" in capsys.readouterr().err
