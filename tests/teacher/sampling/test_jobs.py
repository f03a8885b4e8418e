"""Which inputs become which jobs, under which names, and which of several sounds is the best."""

import numpy as np
import pytest

from teacher.media import write_video
from teacher.sampling.jobs import Job, best, jobs


def film(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.zeros((25, 32, 32, 3), np.uint8), 25.0, np.zeros(16_000, np.float32), 16_000)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with two films."""
    folder = tmp_path_factory.mktemp("jobs")
    for name in ("film1", "film2"):
        film(folder / "films" / f"{name}.mp4")
    return folder


def test_the_best_is_the_first_of_the_largest_values():
    assert best([0.1, 0.7, 0.7]) == 1


def test_inputs_become_jobs(folder, tmp_path):
    films = folder / "films"
    both = [films / "film1.mp4", films / "film2.mp4"]
    assert [j.video for j in jobs([str(films)], None)] == both
    assert [j.video for j in jobs([str(films / "*2.mp4")], "rain")] == both[1:]
    (films / "notes.txt").write_text("no film")
    (films / "list.csv").write_text("file,caption\nfilm2.mp4,a drum\nfilm1.mp4,a bell\n")
    listed = jobs([str(films / "list.csv")], None)
    assert {(j.video.name, j.prompt) for j in listed} == {("film1.mp4", "a bell"), ("film2.mp4", "a drum")}
    assert {j.prompt for j in jobs([str(films / "list.csv")], "mine")} == {"mine"}
    assert jobs([], "Rain, on tin!") == (Job(name="Rain_on_tin", video=None, prompt="Rain, on tin!"),)
    for wrong, told in (([], "give --video"), ([str(tmp_path)], "holds no video"), (["none*.mp4"], "matches no video")):
        with pytest.raises(ValueError, match=told):
            jobs(wrong, None)
    other = film(tmp_path / "film1.mp4")
    with pytest.raises(ValueError, match="have the same file name"):
        jobs([str(both[0]), str(other)], None)
