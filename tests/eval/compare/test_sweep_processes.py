"""A sweep on several processes, cut short and run again: results depend on neither number nor order of anything."""

import json
import multiprocessing
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from eval.compare.reference_rows import reference_rows
from eval.compare.rows import Row, read_rows
from eval.compare.scorer import Scorer
from eval.compare.sweep import Clips, Origin, SavedAudio, part_path, parts_folder, sweep
from eval.features.embedded import EmbeddedAudioFeatures, EmbeddedClassifier
from eval.features.sources import EmbeddedSource
from eval.metrics.onsets import OnsetScorer
from teacher.features.store import Record
from teacher.files.errors import FeatureError
from teacher.files.processes import Processes
from teacher.network.conditions import Conditions

RATE, COUNT, PART = 16_000, 7, 2
IDS = tuple(f"clip/{k}" for k in range(COUNT))
ORIGIN = Origin(config_digest="abc", run_id="test", command="compare", kind="student")


def real() -> torch.Tensor:
    """Half seconds of decaying tones, each begun elsewhere."""
    age = torch.arange(RATE // 2)[None] / RATE - torch.linspace(0.1, 0.3, COUNT)[:, None]
    tone = torch.sin(2 * torch.pi * torch.linspace(300, 2000, COUNT)[:, None] * age) * torch.exp(
        -age.clamp_min(0) / 0.05
    )
    return tone * (age >= 0) + 0.003 * torch.randn(tone.shape, generator=torch.Generator().manual_seed(0))


def make_scorer(order=range(COUNT)) -> Scorer:
    extractor = EmbeddedAudioFeatures(sample_rate=RATE)
    classifier = EmbeddedClassifier.fit(extractor(real()), ["low", "low", "low", "low", "high", "high", "high"])
    records = [
        Record(
            id=IDS[k], item_id=IDS[k], path="none", start_s=0.0, duration_s=0.5, caption="", label="",
            events_s=(0.1 + 0.2 * k / (COUNT - 1),), has_video=True, has_audio=True,
        )
        for k in order
    ]  # fmt: skip
    embedded_source = EmbeddedSource(extractor=extractor, classifier=classifier, labels="labels")
    return Scorer.build(
        reference=real()[list(order)],
        records=records,
        sources=[embedded_source],
        clip_scorers=[OnsetScorer()],
        sample_rate=RATE,
    )


def make_clips(order=range(COUNT)) -> Clips:
    """The text feature of a clip carries its number, so that the generator knows which clip it is asked for."""
    conditions = Conditions.empty(COUNT, 1.0)
    text = conditions.text.clone()
    text[:, 0, 0] = torch.tensor(list(order))
    whole = replace(conditions, text=text)
    return Clips(ids=tuple(IDS[k] for k in order), conditions=lambda first, last: whole.rows(slice(first, last)))


@dataclass
class Generator:
    """Real sound and noise; remembers the clips it was asked for, and fails at one of them if told to."""

    fails_at: int | None = None
    asked: list[int] = field(default_factory=list)

    def __call__(self, conditions, steps, seeds):
        numbers = conditions.text[:, 0, 0].long().tolist()
        if self.fails_at in numbers:
            raise ValueError(f"no memory for clip {self.fails_at}")
        self.asked += numbers
        noise = torch.stack([torch.randn(RATE // 2, generator=torch.Generator().manual_seed(s)) for s in seeds])
        return real()[numbers] + 0.1 / steps * noise


def run(
    folder: Path, *, processes=None, generate=None, order=range(COUNT), part_size=PART, steps=(1,), seeds=(0,)
) -> list[Row]:
    """Rows of a student; `order` is that of the clips."""
    return list(
        sweep(
            generate or Generator(), make_clips(order), task="vta", model="student", steps=steps, seeds=seeds,
            scorer=make_scorer(order), rows_path=folder / "rows.jsonl", origin=ORIGIN, part_size=part_size,
            processes=processes, audio=SavedAudio(folder=folder / "media", count=3, seed=0),
        )
    )  # fmt: skip


def results(folder: Path) -> dict[str, bytes]:
    """Everything that was written, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def together(processes: Processes) -> None:
    """All begin once the lead has registered all; otherwise one with nothing to do would exit before that."""
    processes.meet()
    if processes.lead:
        processes.announce("met")
    processes.wait_for_stage("met", what="the start")


def one_of(rank: int, world: int, folder: Path) -> None:
    """A process of its own: floors, then the sweep."""
    torch.set_num_threads(1)
    with Processes(folder / "processes", rank, world, patience_s=120.0) as processes:
        together(processes)
        floors(folder, processes)
        run(folder, processes=processes, steps=(1, 2))


def floors(folder: Path, processes: Processes | None = None) -> list[Row]:
    scorer = make_scorer()
    return list(
        reference_rows(
            scorer, real=lambda first, last: real()[first:last], other=lambda: scorer.reference, task="vta",
            roundtrip=lambda waves: 0.5 * waves, rows_path=folder / "rows.jsonl", origin=ORIGIN, part_size=PART,
            processes=processes,
        )
    )  # fmt: skip


def test_two_processes_write_what_one_writes_bit_for_bit(tmp_path):
    torch.set_num_threads(1)
    floors(tmp_path / "one")
    run(tmp_path / "one", steps=(1, 2))
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=one_of, args=(rank, 2, tmp_path / "two")) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(180)
    assert [process.exitcode for process in both] == [0, 0]
    assert len(read_rows(tmp_path / "two" / "rows.jsonl")) == 4
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert not any("parts" in name or "processes" in name for name in results(tmp_path / "two"))


def in_threads(folder: Path, generators: list[Generator], *, patience_s: float = 120.0) -> tuple[list[int], list[str]]:
    """One thread per generator as a process of its own; numbers of rows, and the errors."""
    rows, errors = [0] * len(generators), [""] * len(generators)

    def work(rank):
        try:
            with Processes(folder / "processes", rank, len(generators), patience_s=patience_s) as processes:
                together(processes)
                rows[rank] = len(run(folder, processes=processes, generate=generators[rank]))
        except (ValueError, FeatureError) as error:
            errors[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(generators))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    return rows, errors


def test_parts_are_dealt_and_the_lead_alone_gives_rows(tmp_path):
    generators = [Generator() for _ in range(3)]
    rows, errors = in_threads(tmp_path / "three", generators)
    assert errors == ["", "", ""]
    assert rows == [1, 0, 0]
    assert [one.asked for one in generators] == [[0, 1, 6], [2, 3], [4, 5]]  # parts 0 and 3, 1, 2
    run(tmp_path / "one")
    assert results(tmp_path / "three") == results(tmp_path / "one")


def test_a_process_that_fails_ends_the_others_and_what_was_done_is_kept(tmp_path):
    generators = [Generator(), Generator(fails_at=2)]
    rows, errors = in_threads(tmp_path, generators)
    assert errors == ["process 1 of 2 failed: no memory for clip 2", "no memory for clip 2"]
    assert rows == [0, 0]
    assert generators[0].asked == [0, 1, 4, 5]
    folder = parts_folder(tmp_path / "rows.jsonl", ORIGIN, "vta", "student", 1, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["000000-000002.safetensors", "000004-000006.safetensors"]
    # Run again by one process: the finished parts are not generated again, the row is that of a run without a fault.
    again = Generator()
    shutil.rmtree(tmp_path / "processes")
    found = run(tmp_path, generate=again)
    assert again.asked == [2, 3, 6]
    assert found == run(tmp_path / "whole")
    assert results(tmp_path)["rows.jsonl"] == results(tmp_path / "whole")["rows.jsonl"]
    assert not folder.exists()


def test_a_process_that_falls_silent_ends_the_others_with_one_line(tmp_path):
    """Process 1 says that it is alive, and then nothing more."""
    folder = tmp_path / "processes"

    def alive():
        folder.mkdir(parents=True, exist_ok=True)
        for count in range(2):
            fact = {"id": "1", "host": "elsewhere", "pid": 1, "stage": "start", "failed": None, "count": count}
            (folder / ".1.json").write_text(json.dumps(fact))
            (folder / ".1.json").replace(folder / "1.json")
            time.sleep(0.2)

    thread = threading.Thread(target=alive)
    thread.start()
    silent = r"process 1 of 2 gives no sign of life while process 0 waits for vta student, 1 steps, seed 0, part 2 of 4"
    with Processes(folder, 0, 2, patience_s=1.0) as processes:
        with pytest.raises(FeatureError, match=silent) as caught:
            run(tmp_path, processes=processes)
        thread.join()
    assert "\n" not in str(caught.value)
    assert "run the same command again" in str(caught.value)


class Killed(BaseException):
    """As a signal ends a run."""


def test_a_killed_run_loses_one_part_at_most_and_tells_nobody(tmp_path):
    class Ended(Generator):
        def __call__(self, conditions, steps, seeds):
            if len(self.asked) >= 4:
                raise Killed
            return super().__call__(conditions, steps, seeds)

    with pytest.raises(Killed):
        run(tmp_path / "cut", generate=Ended(), seeds=(0, 1))
    again = Generator()
    rows = run(tmp_path / "cut", generate=again, seeds=(0, 1))
    assert again.asked == [4, 5, 6, *range(COUNT)]
    assert rows == run(tmp_path / "whole", seeds=(0, 1))
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    third = Generator()
    assert run(tmp_path / "cut", generate=third, seeds=(0, 1)) == rows
    assert third.asked == []


def test_a_damaged_part_is_named(tmp_path):
    with pytest.raises(ValueError, match="no memory"):
        run(tmp_path, generate=Generator(fails_at=4))
    folder = parts_folder(tmp_path / "rows.jsonl", ORIGIN, "vta", "student", 1, 0)
    part_path(folder, 0, 2).write_bytes(b"")
    with pytest.raises(ValueError, match=r"000000-000002\.safetensors cannot be read"):
        run(tmp_path)


def near(a: Row, b: Row) -> None:
    """Features are float32 and matrix products are summed in another order in a batch of another size."""
    assert a.metrics.keys() == b.metrics.keys()
    for name, value in a.metrics.items():
        assert b.metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def media(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in results(folder).items() if name.startswith("media")}


@pytest.mark.parametrize("size", [1, 3, COUNT, 50])
def test_the_size_of_the_parts_moves_nothing_but_the_last_digits(tmp_path, size):
    near(run(tmp_path / "a")[0], run(tmp_path / "b", part_size=size)[0])
    assert media(tmp_path / "a") == media(tmp_path / "b")  # 16 bits
    assert len(media(tmp_path / "a")) == 3


def test_the_order_of_the_clips_moves_nothing_but_the_last_digits(tmp_path):
    """Intervals excepted, whose groups of clips are drawn by place."""
    row, other = run(tmp_path / "a")[0], run(tmp_path / "b", order=[3, 0, 6, 2, 5, 1, 4])[0]
    near(row, other)
    assert other.clips_digest == row.clips_digest
