"""The log: means over rows, steps and processes, and one line per step however often a run is resumed."""

import errno
import json
import math
import threading
import time

import pytest
import torch

from distill.loop.tracking import Means, Pace, Tracker, _literal


def test_means_count_finite_rows_only():
    means = Means()
    means.add({"a": torch.tensor([1.0, math.nan, 3.0]), "b": torch.tensor([math.nan])})
    means.add({"a": torch.tensor([8.0, math.inf]), "b": torch.tensor(math.nan)})
    taken = means.take()
    assert taken["a"] == 4.0
    assert math.isnan(taken["b"])
    assert means.take() == {}


def test_means_over_processes_are_those_of_all_rows():
    """Rows are dealt unevenly: the mean of the two means would be 3.5."""
    a, b, sent = Means(), Means(), []
    a.add({"x": torch.tensor([1.0, 2.0, 3.0])})
    b.add({"x": torch.tensor([5.0])})
    b.take(lambda sums: sent.append(sums) or sums)
    assert a.take(lambda sums: sums + sent[0]) == {"x": 11 / 4}


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    with Tracker(tmp_path) as tracker:
        for step in range(1, 8):
            tracker.scalars(step, {"loss": float(step), "bad": math.nan})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 8, "lo')  # a kill in the middle of a line
    with Tracker(tmp_path, first=4) as tracker:
        tracker.scalars(5, {"loss": 50.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0)]
    assert all("bad" not in line for line in lines)


def test_pace(monkeypatch):
    times = iter([100.0, 110.0, 115.0])
    monkeypatch.setattr("distill.loop.tracking.time.perf_counter", lambda: next(times))
    pace = Pace(first=20, steps=60, batch_size=8)
    assert pace.at(30) == {"sounds_per_second": 8.0, "seconds_remaining": 30.0}
    assert pace.at(40) == {"sounds_per_second": 16.0, "seconds_remaining": 15.0}


def test_means_go_on_from_a_checkpoint():
    """What was logged before a stop counts in the next line as if there had been none, once over all processes."""
    straight, before = Means(), Means()
    for means in (straight, before):
        means.add({"x": torch.tensor([1.0, math.nan, 2.0])})
    state = json.loads(json.dumps(before.state()))
    cpu = torch.device("cpu")
    main, other = Means(), Means()
    main.load(state, main=True, device=cpu)
    other.load(state, main=False, device=cpu)
    sent = []
    other.take(lambda sums: sent.append(sums) or sums)
    main.add({"x": torch.tensor([7.0])})
    straight.add({"x": torch.tensor([7.0])})
    assert main.take(lambda sums: sums + sent[0]) == straight.take() == {"x": 10 / 3}


@pytest.mark.parametrize(
    "caption", ["![x](http://h/p.png)", "rain\n\n![x](http://h/p.png)", "<img src=http://h/p>", "[l](http://h)"]
)
def test_captions_are_words_in_tensorboard(caption):
    """A picture in a caption would be fetched from its host by whoever looks."""
    from tensorboard.plugin_util import markdown_to_safe_html

    shown = markdown_to_safe_html(_literal(caption))
    assert "<img" not in shown
    assert "<a" not in shown
    assert shown.startswith("<pre><code>")


def test_a_full_disk_is_said_by_the_training_not_by_a_thread_of_tensorboard(tmp_path, monkeypatch):
    """The thread that writes for TensorBoard would print its traceback beside the one line of the training."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def fail(data):
        raise OSError(errno.ENOSPC, "No space left on device")

    def log_on_a_full_disk():
        with Tracker(tmp_path) as tracker:
            tracker.board.file_writer.event_writer._async_writer._writer.write = fail
            for step in range(200):
                tracker.scalars(step, {"loss": 1.0})
                time.sleep(0.01)

    with pytest.raises(OSError, match="No space left"):
        log_on_a_full_disk()
    assert seen == []
    other = threading.Thread(target=fail, args=(b"",))
    other.start()
    other.join()
    assert [failed.thread for failed in seen] == [other]
