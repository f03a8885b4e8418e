"""Compare networks on video-to-audio and text-to-audio: quality against steps and guidance, and time by stage.

mf-compare --teacher runs/demo/teacher --student runs/demo/student --steps 1 25 --seeds 0 1 2
torchrun --nproc-per-node 4 -m scripts.compare ...       the clips are dealt to the processes, the results are the same

Rows already in rows.jsonl with the same configuration are kept, and of an unfinished row the parts that are done.
"""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro

from distill.processes import this_process
from eval.compare.comparison import Comparison
from eval.compare.examples import ExampleWriter, write_examples
from eval.compare.hygiene import TestFacts, write_facts
from eval.compare.overlap import find_overlap, read_groups
from eval.compare.rows import Row, Task, check_lines
from eval.compare.sweep import PART, KeptAudio, Origin
from eval.compare.test_set import TestSet, Unreadable
from eval.compare.training_sounds import TrainingSounds
from eval.features.published_models import PublishedModels
from eval.metrics import leading
from eval.speed.timing import machine_facts
from scripts.compare_inputs import check_fits, check_least, entries, listed
from scripts.contestants import contestants
from scripts.errors import one_line_errors
from teacher.features.codec import load_codec
from teacher.features.dataset import FeatureSet
from teacher.features.store import Record
from teacher.files import FolderLock
from teacher.files.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Sweep models x steps x guidance x seeds over a test set."""

    data: Path = Path("runs/demo/features")
    """Extracted features; the test split is used."""
    teacher: Path | None = Path("runs/demo/teacher")
    """Run folder of a network that is integrated; None for none."""
    student: Path | None = Path("runs/demo/student")
    """Run folder of a network that jumps; None for none."""
    also: tuple[str, ...] = ()
    """More networks as NAME=RUN; whether one jumps or is integrated is seen in its files."""
    out: Path = Path("runs/demo")
    """Folder for rows.jsonl, clips.jsonl, embeddings/, examples.json and media/."""
    cache: Path | None = None
    """Where features of real sound and picture are kept by the digest of the file; OUT/cache unless given."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 25)
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[Task, ...] | None = None
    """vta: sound from video, tta: sound from text alone. Not given: both, where the data has clips for them."""
    max_clips: int = 96
    """Test clips per task."""
    test_list: Path | None = None
    """Exactly these test clips: list files of VGGSound, AudioCaps and Greatest Hits, a manifest, or one id a line."""
    unreadable: Unreadable = "fail"
    """A test clip that is listed but not there, or cannot be read: fail, or exclude it for all models and list it. It
    is never replaced."""
    manifest: Path | None = None
    """Table with a group_id column, for features extracted without it: clips of one group count as one source."""
    teacher_guidance: tuple[float, ...] = (1.4,)
    """Guidance scales of networks that are integrated; 1 is off."""
    student_guidance: tuple[float, ...] = (1.4,)
    """Guidance scales of networks that jump; 1 is off, one evaluation a step."""
    rescale: bool = True
    """Scalar rescaling of the unconditional prediction under guidance."""
    judges: PublishedModels = field(default_factory=PublishedModels)
    """Files of published models."""
    extrapolate: bool = False
    """Also the Frechet distance extrapolated to infinitely many clips, which takes 15 distances for each."""
    num_examples: int = 6
    """Clips kept as players on the page."""
    part: int = PART
    """Clips generated and scored at a time."""
    timing_repeats: int = 3
    """Of every stage, after one call for warming up; 50 for figures to publish. 0: no timing."""
    timing_batches: tuple[int, ...] = (1, 8)
    """Sounds made at once, 1 among them: real-time factors in the rows, and what is called time per clip, are its."""
    device: str = "auto"


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Compare, description=__doc__)
    rank, world, *_ = this_process()
    alone = FolderLock(args.out, what="the comparison") if rank == 0 else nullcontext()
    with alone, Processes(args.out / "processes", rank, world) as processes:
        run(args, processes)
    if processes.lead:
        print(f"rows in {args.out / 'rows.jsonl'}")


def run(args: Compare, processes: Processes) -> None:
    """All tasks, one after the other."""
    device = _device(args.device)
    check_least(
        steps=(args.steps, 1),
        max_clips=((args.max_clips,), 2),
        part=((args.part,), 1),
        num_examples=((args.num_examples,), 0),
        timing_batches=(args.timing_batches, 1),
        timing_repeats=((args.timing_repeats,), 0),
    )
    if not args.seeds:
        raise ValueError("--seeds must hold at least one number")
    check_lines(args.out)
    networks = entries(args.teacher, args.student, args.also)
    sounds = TrainingSounds.read(args.data)
    cache = args.cache or args.out / "cache"
    features = FeatureSet.open(args.data, "test")
    tasks = _tasks(args, features.records, told=print if processes.lead else lambda line: None)
    sources, clip_scorers = args.judges.load(
        duration_s=features.duration_s, device=device, cache=cache, process=processes.rank
    )
    codec = load_codec(args.data)
    command = f"python -m scripts.compare {shlex.join(sys.argv[1:])}".strip()
    pipelines = {entry: entry.load(device) for entry in networks}
    for entry, pipeline in pipelines.items():
        check_fits(entry, pipeline, features)
        if processes.lead and pipeline.codec.digest != codec.digest:
            print(f"note: {entry.name} was trained with another codec than the data was extracted with (--codec-from)")
    licences = dict.fromkeys(pipeline.licence for pipeline in pipelines.values())
    comment = f"licence of the weights: {' / '.join(licences)}; {', '.join(e.run.resolve().name for e in networks)}"
    comparison = Comparison(
        contestants=contestants(
            pipelines,
            teacher_guidance=args.teacher_guidance,
            student_guidance=args.student_guidance,
            rescale=args.rescale,
            steps=args.steps,
            batches=args.timing_batches,
            repeats=args.timing_repeats,
            records=features.records,
            out=args.out,
            command=command,
        ),
        steps=args.steps,
        seeds=args.seeds,
        rows_path=args.out / "rows.jsonl",
        origin=Origin(
            config_digest="",
            run_id=args.out.name,
            command=command,
            machine=machine_facts(device),
            duration_s=features.duration_s,
        ),
        codec={"codec": codec.digest},
        roundtrip=lambda waves: codec.decode(codec.encode(waves)),
        processes=processes,
        keep=KeptAudio(folder=args.out / "media", count=args.num_examples, seed=args.seeds[0], comment=comment),
        part_size=args.part,
    )
    _start_together(comparison, tasks, args.steps[0])
    examples: list[dict[str, object]] = []
    for task in tasks:
        only, missing = listed(args.test_list, features, task, args.unreadable)
        test = TestSet.build(
            args.data,
            video=task == "vta",
            max_clips=args.max_clips,
            sources=(sounds.source, *sources),
            clip_scorers=clip_scorers,
            cache=cache,
            unreadable=args.unreadable,
            only=only,
            costly=args.extrapolate,
            part_size=args.part,
            processes=processes,
        )
        if processes.lead:
            _tell(args, task, test, missing, [entry.run for entry in networks])
        for row in _rows(comparison, task, test, sounds):
            print(_line(row), flush=True)
        if processes.lead:
            writer = ExampleWriter(
                folder=comparison.keep.folder, sample_rate=test.scorer.sample_rate, shown=comparison.shown()
            )
            count = min(args.num_examples, len(test.records))
            if count:
                examples += writer.examples(task, test.records[:count], test.waves(0, count), comparison.keep)
            write_examples(args.out / "examples.json", examples)


def _tasks(args: Compare, records: Sequence[Record], *, told: Callable[[str], None]) -> tuple[Task, ...]:
    """The tasks asked for; else those for which the test split has clips. What is left out is told in a line each."""
    if args.tasks is not None:
        return args.tasks
    counts: dict[Task, tuple[int, str]] = {
        "vta": (sum(record.has_video for record in records), "picture"),
        "tta": (sum(bool(record.caption) for record in records), "words"),
    }
    for task, (count, need) in counts.items():
        if count < 2:
            told(f"{task} is left out: {count} test clips of {args.data} with {need}, 2 are needed")
    tasks = tuple(task for task, (count, _) in counts.items() if count >= 2)
    if not tasks:
        raise ValueError(f"{args.data} has {len(records)} test clips, too few for either task; 2 are needed")
    return tasks


def _start_together(comparison: Comparison, tasks: Sequence[Task], steps: int) -> None:
    """Wait for all processes; with several, the lead takes all times while the others rest.

    Who finds everything done would else leave before the lead has seen it.
    """
    processes = comparison.processes
    processes.meet()
    if processes.lead and processes.world > 1:
        for rtf in (one.rtf for one in comparison.contestants if one.rtf is not None):
            for task in tasks:
                rtf(task, steps)
    if processes.lead:
        processes.announce("ready")
    processes.wait_for_stage("ready", what="the start of the comparison")


def _rows(comparison: Comparison, task: Task, test: TestSet, sounds: TrainingSounds) -> Iterator[Row]:
    yield from comparison.reference(task, test, sounds)
    for contestant in comparison.contestants:
        yield from comparison.rows(task, test, contestant)


def _tell(args: Compare, task: Task, test: TestSet, missing: tuple[str, ...], runs: list[Path]) -> None:
    """What is scored, what is not and what was trained on: testset.json, scored-<task>.txt and a line."""
    groups = None if args.manifest is None else read_groups(args.manifest)
    overlap = find_overlap(test.records, runs, groups=groups)
    gone = tuple((clip_id, "listed, but not among the extracted clips") for clip_id in missing)
    facts = TestFacts(task=task, ids=test.scorer.ids, excluded=(*test.excluded, *gone), overlap=overlap)
    write_facts(args.out, [facts])
    print(f"{task}: {' '.join(facts.sentences())}", flush=True)


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    return f"cuda:{this_process().local_rank}" if torch.cuda.is_available() else "cpu"


def _line(row: Row) -> str:
    scores = "  ".join(f"{key} {row.metrics[key]:.3f}" for key in leading(row.metrics))
    return f"{row.title}: {scores}"


if __name__ == "__main__":
    cli()
