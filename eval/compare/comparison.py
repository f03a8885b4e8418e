"""A comparison: contestants x steps x seeds on one task's test set, floors and ceilings first."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from eval.compare.examples import Shown
from eval.compare.reference_rows import reference_rows
from eval.compare.rows import Kind, Row, Task
from eval.compare.sweep import Generate, KeptAudio, Origin, sweep
from eval.compare.test_set import TestSet
from eval.compare.training_sounds import TrainingSounds
from eval.features.clip_features import ClipFeatures
from meanflow.config import digest
from teacher.files.processes import Processes

RESERVED = ("codec", "reference")


@dataclass(frozen=True, kw_only=True, eq=False)
class Contestant:
    """One network with one guidance scale."""

    name: str
    kind: Kind
    generate: Generate
    settings: Mapping[str, object]
    """Everything about it that decides the sound: digests of weights and codec, guidance."""
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What all tasks of a comparison share."""

    contestants: tuple[Contestant, ...]
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    rows_path: Path
    origin: Origin
    """Without a configuration digest: that of each row is made here."""
    codec: Mapping[str, object]
    """Digest of the codec."""
    roundtrip: Callable[[Tensor], Tensor]
    processes: Processes
    keep: KeptAudio
    part_size: int

    def __post_init__(self) -> None:
        seen = [(one.name, one.guidance) for one in self.contestants]
        if len(set(seen)) < len(seen):
            told = ", ".join(f"{name} at {scale:g}" for name, scale in seen)
            raise ValueError(f"models must differ in name or guidance scale, got {told}")
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

    def rows(self, task: Task, test: TestSet, contestant: Contestant) -> Iterator[Row]:
        """Rows of one contestant, those already there included; none for processes that do not lead."""
        rtf = contestant.rtf
        origin = self._origin(test, contestant.settings)
        yield from sweep(
            contestant.generate,
            test.clips,
            task=task,
            model=contestant.name,
            steps=self.steps,
            seeds=self.seeds,
            scorer=test.scorer,
            rows_path=self.rows_path,
            origin=replace(origin, params=contestant.params, kind=contestant.kind),
            guidance=contestant.guidance,
            evaluations_per_step=contestant.evaluations_per_step,
            part_size=self.part_size,
            processes=self.processes,
            rtf=None if rtf is None else lambda steps: rtf(task, steps),
            keep=self.keep,
        )

    def shown(self) -> tuple[Shown, ...]:
        """What stands on the page beside the ground truth: every teacher at its most and at its fewest steps, every
        student at its fewest."""
        few, many = min(self.steps), max(self.steps)
        found = []
        for one in self.contestants:
            for steps in dict.fromkeys((many, few) if one.kind == "teacher" else (few,)):
                scale = f", guidance {one.guidance:g}" if self._several_scales(one) else ""
                name = f"{one.name}, {steps} step{'s' * (steps != 1)}{scale}"
                found.append(Shown(name=name, model=one.name, steps=steps, guidance=one.guidance))
        return tuple(found)

    def _several_scales(self, contestant: Contestant) -> bool:
        return len([one for one in self.contestants if one.name == contestant.name]) > 1

    def _origin(self, test: TestSet, settings: Mapping[str, object]) -> Origin:
        # Rounding differs with the number of clips in a batch, and a codec that searches for phases amplifies it.
        scores = {"scores": test.scorer.name, "costly": test.scorer.costly, "part": self.part_size}
        clips = {"ids": list(test.clips.ids), "data": test.features.info["digest"], "sounds": test.sounds} | scores
        return replace(self.origin, config_digest=digest(dict(settings) | {"clips": clips}))
