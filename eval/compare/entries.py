"""The models entered in a comparison: run folders by name, loaded, each with its guidance scales, sound and timing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from eval.compare.rows import Kind, Task, safe_name
from eval.compare.sweep import Generate
from eval.speed.budget import Budget, Setting
from eval.speed.measure import measure_budget
from eval.speed.stages import StagedGenerator, Workload
from meanflow import Guidance
from teacher.encoders.registry import read_window_frames
from teacher.features.dataset import FeatureSet
from teacher.features.store import Record
from teacher.files import file_digest
from teacher.media import MediaError, probe
from teacher.network.conditions import Conditions
from teacher.sampling.generator import network_evaluations, noise
from teacher.sampling.pipeline import Pipeline, SamplingConfig
from teacher.weights.loading import weight_file
from teacher.weights.run_folder import read_features_info

RESERVED = ("codec", "reference")
"""Names of the rows that belong to no network, which no network may have."""


@dataclass(frozen=True)
class NamedRun:
    """The name of a network in the comparison, and its run folder."""

    name: str
    run: Path

    @classmethod
    def parse(cls, text: str) -> "NamedRun":
        """From NAME=RUN."""
        name, sign, run = text.partition("=")
        if not sign or not name.strip() or not run.strip():
            raise ValueError(f"a further network is given as NAME=RUN, got {text!r}")
        return cls(name.strip(), Path(run.strip()))

    def load(self, device: str) -> Pipeline:
        """Load the network of the run folder with the codec and encoders that it names."""
        return Pipeline.load(self.run, device=device)


def named_runs(teacher: Path | None, student: Path | None, also: Sequence[str]) -> list[NamedRun]:
    """The networks by name. Raises ValueError where there is none."""
    own = [NamedRun(name, run) for name, run in (("teacher", teacher), ("student", student)) if run is not None]
    found = [*own, *map(NamedRun.parse, also)]
    if not found:
        raise ValueError("there is no network to compare: give --teacher, --student or --also")
    return found


def check_fits(named: NamedRun, pipeline: Pipeline, features: FeatureSet) -> None:
    """Raises ValueError unless the network was trained for the windows, encoders and sample rate of the data. Otherwise
    its waves would be scored at the wrong rate, or its inputs would be features of other encoders."""
    jumps = pipeline.net.config.interval_embedding
    if (named.name, jumps) in (("teacher", True), ("student", False)):
        kind = "jumps, as students do" if jumps else "is integrated, as teachers are"
        raise ValueError(f"--{named.name} {named.run} {kind}; exchange the two, or give it by --also NAME={named.run}")
    config = features.info["config"]
    for name, own, of_data in (
        ("sample rate", pipeline.codec.sequence.sample_rate, features.sequence.sample_rate),
        ("duration in seconds", pipeline.window_s, features.duration_s),
        ("set of encoders", read_features_info(named.run).encoders, config["encoders"]),
    ):
        if own != of_data:
            raise ValueError(f"{named.name} ({named.run}): its {name} is {own}, that of the data is {of_data}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """A model in a comparison: one network with one guidance scale."""

    name: str
    kind: Kind
    generate: Generate
    settings: Mapping[str, object]
    """Everything about the network that the sound depends on: digests of weights and codec, guidance."""
    guidance: float
    evaluations_per_step: int
    params: int
    rtf: Callable[[Task, int], Mapping[str, float]] | None = None
    """Real-time factors of a task for a number of steps."""

    def __post_init__(self) -> None:
        if self.kind not in ("teacher", "student"):
            raise ValueError(f"kind must be teacher or student, got {self.kind!r}")
        if self.name in RESERVED or not self.name.strip():
            raise ValueError(f"a model cannot be called {self.name!r}; choose another name")


def make_entries(
    pipelines: Mapping[NamedRun, Pipeline],
    *,
    teacher_guidance: Sequence[float],
    student_guidance: Sequence[float],
    rescale: bool,
    steps: tuple[int, ...],
    batches: tuple[int, ...],
    repeats: int,
    records: Sequence[Record],
    out: Path,
    command: str,
) -> tuple[Entry, ...]:
    """The entries of every network, one for each guidance scale of its kind; a network that jumps is a student."""
    if repeats and 1 not in batches:
        raise ValueError(f"timing batches must hold 1, which the real-time factors of rows are of, got {batches}")
    found = []
    for named, pipeline in pipelines.items():
        kind: Kind = "student" if pipeline.net.config.interval_embedding else "teacher"
        rules = [
            Guidance(omega=w, rescale=rescale) for w in (student_guidance if kind == "student" else teacher_guidance)
        ]
        timing = None
        if repeats:
            timing = _Timing(
                pipeline=pipeline,
                rules=tuple(rules),
                steps=steps,
                batches=batches,
                repeats=repeats,
                records=records,
                path=out / f"budget-{safe_name(named.name)}-{{task}}.json",
                command=command,
            )
        weights = file_digest(weight_file(named.run, "auto"))
        for rule in rules:
            found.append(
                Entry(
                    name=named.name,
                    kind=kind,
                    generate=_generator(pipeline, rule),
                    settings={"weights": weights, "guidance": rule, "codec": pipeline.codec.digest},
                    guidance=rule.omega,
                    evaluations_per_step=network_evaluations(
                        1, rule, guided_input=pipeline.net.config.guidance_embedding
                    ),
                    params=sum(p.numel() for p in pipeline.net.parameters()),
                    rtf=None if timing is None else timing.of(rule),
                )
            )
    return tuple(found)


def _generator(pipeline: Pipeline, guidance: Guidance) -> Generate:
    def make(conditions: Conditions, steps: int, seeds: Sequence[int]) -> Tensor:
        """Generate clip by clip, since the sound of a clip in a batch depends on the others (`Pipeline.__call__`)."""
        frames, waves = pipeline.codec.sequence.latent_frames(pipeline.window_s), []
        sampling = SamplingConfig(steps=steps, guidance=guidance)
        for k, seed in enumerate(seeds):
            e = noise([seed], frames, pipeline.codec.latent_channels)
            waves.append(pipeline.generator(conditions.rows(slice(k, k + 1)), e, sampling))
        return torch.cat(waves)

    return make


@dataclass(frozen=True, kw_only=True, eq=False)
class _Timing:
    """The staged budget of one network, measured when a row first asks for it and written beside the rows."""

    pipeline: Pipeline
    rules: tuple[Guidance, ...]
    steps: tuple[int, ...]
    batches: tuple[int, ...]
    repeats: int
    records: Sequence[Record]
    path: Path
    command: str

    def of(self, rule: Guidance) -> Callable[[Task, int], Mapping[str, float]]:
        """Real-time factors of a task and a number of steps, at batch size 1."""
        budgets: dict[Task, Budget] = {}

        def rtf(task: Task, steps: int) -> Mapping[str, float]:
            if task not in budgets:
                budgets[task] = self._measured(task)
            return budgets[task].rtf(1, Setting(steps=steps, guidance=rule.omega))

        return rtf

    def _readable(self, record: Record) -> bool:
        """Whether the picture can be decoded; what happens to a test clip that cannot be read is not decided here."""
        requests = (self.pipeline.encoders.image.request, self.pipeline.encoders.sync.request)
        try:
            read_window_frames(requests, probe(Path(record.path)), record.start_s, self.pipeline.window_s)
        except MediaError:
            return False
        return True

    def _measured(self, task: Task) -> Budget:
        filmed = (r for r in self.records if task == "vta" and r.has_video and self._readable(r))
        clips = list(islice(filmed, max(self.batches)))
        captions = tuple(dict.fromkeys(r.caption for r in self.records if r.caption))[: max(self.batches)]
        workload = Workload(
            duration_s=self.pipeline.window_s,
            captions=captions or ("",),
            windows=tuple((Path(r.path), r.start_s) for r in clips),
        )
        budget = measure_budget(
            StagedGenerator.of_pipeline(self.pipeline, Path(self.path.name.format(task=task)).stem),
            workload,
            steps=self.steps,
            guidance=self.rules,
            batches=self.batches,
            repeats=self.repeats,
            command=self.command,
        )
        budget.write(self.path.with_name(self.path.name.format(task=task)))
        return budget
