"""A comparison: its configuration, and its run over models x steps x guidance x seeds on the test set of each task.

Real sound and the codec round trip come first; they are the floor and the ceiling of every model.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from eval.compare.entries import Entry, check_fits, make_entries, named_runs
from eval.compare.examples import ExampleWriter, Shown, write_examples
from eval.compare.hygiene import TestFacts, write_facts
from eval.compare.overlap import find_overlap, read_groups
from eval.compare.reference_rows import reference_rows
from eval.compare.rows import Row, Task, check_lines
from eval.compare.sweep import PART, Origin, SavedAudio, sweep
from eval.compare.test_set import TestSet, Unreadable, listed_clips
from eval.compare.training_sounds import TrainingSounds
from eval.features.clip_features import ClipFeatures
from eval.features.published_models import PublishedModels
from eval.metrics import leading
from eval.speed.timing import machine_facts
from meanflow.config import digest
from teacher.features.codec import load_codec
from teacher.features.dataset import FeatureSet
from teacher.features.store import Record
from teacher.files.processes import Processes


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Sweep models x steps x guidance x seeds over a test set."""

    data: Path = Path("runs/demo/features")
    """Extracted features; the test split is used."""
    teacher: Path | None = Path("runs/demo/teacher")
    """Run folder of a network that is integrated; None for none."""
    student: Path | None = Path("runs/demo/student")
    """Run folder of a network that jumps; None for none."""
    also: tuple[str, ...] = ()
    """More networks as NAME=RUN; the files show whether one jumps or is integrated."""
    out: Path = Path("runs/demo")
    """Folder for rows.jsonl, clips.jsonl, embeddings/, examples.json and media/."""
    cache: Path | None = None
    """Folder for features of real sound and picture, stored by the digest of the file; OUT/cache unless given."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 25)
    """Numbers of sampling steps."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the noise; each makes a row of its own."""
    tasks: tuple[Task, ...] | None = None
    """vta: sound from video, tta: sound from text alone. Without it both, where the data has clips for them."""
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
    """Whether guidance rescales the unconditional prediction by a scalar per sample (CFG-Zero*)."""
    judges: PublishedModels = field(default_factory=PublishedModels)
    """Files of published models."""
    extrapolate: bool = False
    """Also compute the Frechet distance extrapolated to infinitely many clips, which takes 15 distances for each."""
    num_examples: int = 6
    """Number of clips with players on the page."""
    part: int = PART
    """Clips generated and scored at a time."""
    timing_repeats: int = 3
    """Timed calls of every stage, after one call for warming up; use 50 for figures to publish. 0: no timing."""
    timing_batches: tuple[int, ...] = (1, 8)
    """Batch sizes that are timed; 1 must be among them, since the rows have its real-time factors and times per clip.
    """
    device: str = "auto"
    """Device that generates and scores: auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """The settings and models that all tasks of a comparison have in common."""

    entries: tuple[Entry, ...]
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    rows_path: Path
    origin: Origin
    """The origin of the rows without a configuration digest, which each row gets here."""
    codec: Mapping[str, object]
    """Digest of the codec."""
    roundtrip: Callable[[Tensor], Tensor]
    processes: Processes
    audio: SavedAudio
    part_size: int

    def __post_init__(self) -> None:
        settings = [(one.name, one.guidance) for one in self.entries]
        if len(set(settings)) < len(settings):
            given = ", ".join(f"{name} at {scale:g}" for name, scale in settings)
            raise ValueError(f"models must differ in name or guidance scale, got {given}")
        if not self.steps or not self.seeds:
            raise ValueError("steps and seeds must hold at least one number each")

    def reference(self, task: Task, test: TestSet, sounds: TrainingSounds) -> Iterator[Row]:
        """Rows of real sound and of the codec round trip."""
        scorer = test.scorer

        def other() -> ClipFeatures:
            count = len(test.records)
            return sounds.features_like(scorer.sources, count, video=task == "vta", num_samples=scorer.num_samples)

        yield from reference_rows(
            scorer,
            real=test.waves,
            other=other,
            roundtrip=self.roundtrip,
            task=task,
            rows_path=self.rows_path,
            origin=self._origin(test, self.codec),
            part_size=self.part_size,
            processes=self.processes,
        )

    def rows(self, task: Task, test: TestSet, entry: Entry) -> Iterator[Row]:
        """Rows of one entry, finished ones included; none in processes other than the lead."""
        rtf = entry.rtf
        origin = self._origin(test, entry.settings)
        yield from sweep(
            entry.generate,
            test.clips,
            task=task,
            model=entry.name,
            steps=self.steps,
            seeds=self.seeds,
            scorer=test.scorer,
            rows_path=self.rows_path,
            origin=replace(origin, params=entry.params, kind=entry.kind),
            guidance=entry.guidance,
            evaluations_per_step=entry.evaluations_per_step,
            part_size=self.part_size,
            processes=self.processes,
            rtf=None if rtf is None else lambda steps: rtf(task, steps),
            audio=self.audio,
        )

    def shown(self) -> tuple[Shown, ...]:
        """The versions that the page shows beside the ground truth: every teacher at its most and at its fewest steps,
        every student at its fewest."""
        few, many = min(self.steps), max(self.steps)
        found = []
        for one in self.entries:
            for steps in dict.fromkeys((many, few) if one.kind == "teacher" else (few,)):
                scale = f", guidance {one.guidance:g}" if self._several_scales(one) else ""
                name = f"{one.name}, {steps} step{'s' * (steps != 1)}{scale}"
                found.append(Shown(name=name, model=one.name, steps=steps, guidance=one.guidance))
        return tuple(found)

    def _several_scales(self, entry: Entry) -> bool:
        return len([one for one in self.entries if one.name == entry.name]) > 1

    def _origin(self, test: TestSet, settings: Mapping[str, object]) -> Origin:
        # Rounding differs with the number of clips in a batch, and a codec that searches for phases amplifies it.
        scores = {"scores": test.scorer.name, "costly": test.scorer.costly, "part": self.part_size}
        clips = {"ids": list(test.clips.ids), "data": test.features.info["digest"], "sounds": test.sounds} | scores
        return replace(self.origin, config_digest=digest(dict(settings) | {"clips": clips}))


def run_comparison(
    config: ComparisonConfig, processes: Processes, *, command: str, device: str, report: Callable[[str], None] = print
) -> None:
    """Compare the models on all tasks, one after the other; the lead process writes rows and reports each in a line.

    Raises:
        ValueError: numbers, networks or clips that a comparison cannot be made with, before anything is made.
    """
    check_least(
        steps=(config.steps, 1),
        max_clips=((config.max_clips,), 2),
        part=((config.part,), 1),
        num_examples=((config.num_examples,), 0),
        timing_batches=(config.timing_batches, 1),
        timing_repeats=((config.timing_repeats,), 0),
    )
    if not config.seeds:
        raise ValueError("--seeds must hold at least one number")
    check_lines(config.out)
    networks = named_runs(config.teacher, config.student, config.also)
    sounds = TrainingSounds.read(config.data)
    cache = config.cache or config.out / "cache"
    features = FeatureSet.open(config.data, "test")
    tasks = tasks_of(config, features.records, report=report if processes.lead else lambda line: None)
    sources, clip_scorers = config.judges.load(
        duration_s=features.duration_s,
        device=device,
        cache=cache,
        process=processes.rank,
        report=report if processes.lead else lambda line: None,
    )
    codec = load_codec(config.data)
    pipelines = {named: named.load(device) for named in networks}
    for named, pipeline in pipelines.items():
        check_fits(named, pipeline, features)
        if processes.lead and pipeline.codec.digest != codec.digest:
            report(f"note: {named.name} was trained with another codec than the data was extracted with (--codec-from)")
    licences = dict.fromkeys(pipeline.licence for pipeline in pipelines.values())
    comment = f"licence of the weights: {' / '.join(licences)}; {', '.join(e.run.resolve().name for e in networks)}"
    comparison = Comparison(
        entries=make_entries(
            pipelines,
            teacher_guidance=config.teacher_guidance,
            student_guidance=config.student_guidance,
            rescale=config.rescale,
            steps=config.steps,
            batches=config.timing_batches,
            repeats=config.timing_repeats,
            records=features.records,
            out=config.out,
            command=command,
        ),
        steps=config.steps,
        seeds=config.seeds,
        rows_path=config.out / "rows.jsonl",
        origin=Origin(
            config_digest="",
            run_id=config.out.name,
            command=command,
            machine=machine_facts(device),
            duration_s=features.duration_s,
        ),
        codec={"codec": codec.digest},
        roundtrip=lambda waves: codec.decode(codec.encode(waves)),
        processes=processes,
        audio=SavedAudio(folder=config.out / "media", count=config.num_examples, seed=config.seeds[0], comment=comment),
        part_size=config.part,
    )
    _start_together(comparison, tasks, config.steps[0])
    examples: list[dict[str, object]] = []
    for task in tasks:
        only, missing = listed_clips(config.test_list, features, task, config.unreadable)
        test = TestSet.build(
            config.data,
            video=task == "vta",
            max_clips=config.max_clips,
            sources=(sounds.source, *sources),
            clip_scorers=clip_scorers,
            cache=cache,
            unreadable=config.unreadable,
            only=only,
            costly=config.extrapolate,
            part_size=config.part,
            processes=processes,
        )
        if processes.lead:
            facts = _write_facts(config, task, test, missing, [named.run for named in networks])
            report(f"{task}: {' '.join(facts.sentences())}")
        for row in _rows(comparison, task, test, sounds):
            report(_line(row))
        if processes.lead:
            writer = ExampleWriter(
                folder=comparison.audio.folder, sample_rate=test.scorer.sample_rate, shown=comparison.shown()
            )
            count = min(config.num_examples, len(test.records))
            if count:
                examples += writer.examples(task, test.records[:count], test.waves(0, count), comparison.audio)
            write_examples(config.out / "examples.json", examples)


def tasks_of(config: ComparisonConfig, records: Sequence[Record], *, report: Callable[[str], None]) -> tuple[Task, ...]:
    """The tasks of the configuration; without any, those for which the test split has clips. Tasks left out are
    reported in a line each."""
    if config.tasks is not None:
        return config.tasks
    counts: dict[Task, tuple[int, str]] = {
        "vta": (sum(record.has_video for record in records), "picture"),
        "tta": (sum(bool(record.caption) for record in records), "captions"),
    }
    for task, (count, need) in counts.items():
        if count < 2:
            report(f"{task} is left out: {count} test clips of {config.data} with {need}, 2 are needed")
    tasks = tuple(task for task, (count, _) in counts.items() if count >= 2)
    if not tasks:
        raise ValueError(f"{config.data} has {len(records)} test clips, too few for either task; 2 are needed")
    return tasks


def _start_together(comparison: Comparison, tasks: Sequence[Task], steps: int) -> None:
    """Wait for all processes; with several, the lead takes all times while the others rest.

    Otherwise a process with nothing left to do would exit before the lead process registers it.
    """
    processes = comparison.processes
    processes.meet()
    if processes.lead and processes.world > 1:
        for rtf in (one.rtf for one in comparison.entries if one.rtf is not None):
            for task in tasks:
                rtf(task, steps)
    if processes.lead:
        processes.announce("ready")
    processes.wait_for_stage("ready", what="the start of the comparison")


def _rows(comparison: Comparison, task: Task, test: TestSet, sounds: TrainingSounds) -> Iterator[Row]:
    yield from comparison.reference(task, test, sounds)
    for entry in comparison.entries:
        yield from comparison.rows(task, test, entry)


def _write_facts(
    config: ComparisonConfig, task: Task, test: TestSet, missing: tuple[str, ...], runs: list[Path]
) -> TestFacts:
    """What is scored, what is not and what was trained on, as testset.json and scored-<task>.txt."""
    groups = None if config.manifest is None else read_groups(config.manifest)
    overlap = find_overlap(test.records, runs, groups=groups)
    gone = tuple((clip_id, "listed, but not among the extracted clips") for clip_id in missing)
    facts = TestFacts(task=task, ids=test.scorer.ids, excluded=(*test.excluded, *gone), overlap=overlap)
    write_facts(config.out, [facts])
    return facts


def _line(row: Row) -> str:
    scores = "  ".join(f"{key} {row.metrics[key]:.3f}" for key in leading(row.metrics))
    return f"{row.title}: {scores}"


def check_least(**numbers: tuple[Sequence[int], int]) -> None:
    """Raises ValueError naming the flag unless it has values and none is below `least`."""
    for name, (values, least) in numbers.items():
        if not values or min(values) < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least {least}, got {' '.join(map(str, values)) or 'none'}")
