"""The configuration of a training run, as in run/config.json: data, initial network, method and loop."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from distill.loop_config import EvaluationConfig, LoopConfig, OptimConfig
from distill.method.step import Method
from distill.method.velocity_source import FromData, FromTeacher, GuidedInput, VelocitySource
from meanflow.config import TAG
from teacher.features.dataset import Modalities
from teacher.flow_matching import FlowMatching
from teacher.network.lora import LoRAConfig
from teacher.network.variants import MMAudioConfig, variant

__all__ = [
    "DistillRun", "EvaluationConfig", "Fresh", "FromData", "FromTeacher", "FromWeights", "GuidedInput", "LoopConfig",
    "Method", "OptimConfig", "Start", "TeacherRun", "VelocitySource", "with_current_names",
]  # fmt: skip

FORMER_NAMES = {"DistillConfig": "DistillRun", "Distillation": "Method"}
"""Former class names, as config.json of earlier versions has them for tags, and the present ones."""


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Start from a new network of this size."""

    network: MMAudioConfig = field(default_factory=lambda: variant("small_16k"))
    init: Literal["published", "unit"] = "published"
    """Initialisation: as MMAudio's, or one that makes signals of unit size, with which small networks learn faster."""

    def without_places(self) -> Self:
        """This value itself, since it names no folder."""
        return self


@dataclass(frozen=True, kw_only=True)
class FromWeights:
    """Start from the network of a run folder, official or own, with its size and its latent statistics."""

    run: Path
    """Run folder to start from."""
    weights: str = "auto"
    """Which of its weights: model (the last step), ema-0.05 and so on; auto is the narrowest average, else model."""

    def without_places(self) -> Self:
        """The same choice of weights without the folder of the run."""
        return replace(self, run=Path())


Start: TypeAlias = Fresh | FromWeights


@dataclass(frozen=True, kw_only=True)
class TeacherRun:
    """A training run of a teacher: data, initial network, method and loop."""

    data: tuple[Path, ...]
    """Feature folders to train on, all together. The first one's codec and latent statistics become the run's."""
    repeat: tuple[int, ...] = ()
    """How often each folder is repeated in an epoch, one number per folder; without any, once each. MMAudio repeats
    its videos 5 times (3 in the medium and large sizes) beside the sets of sounds with captions."""
    modalities: Modalities = "AVT+AT"
    """Modalities used in training (A audio, V video, T text), of rows with video + of rows without (arXiv 2412.15322,
    table 4)."""
    start: Start = field(default_factory=Fresh)
    lora: LoRAConfig | None = None
    """Train low-rank adapters beside frozen weights instead of the weights themselves."""
    method: FlowMatching = field(default_factory=FlowMatching)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _check_sets(self.data, self.repeat)
        if self.lora is not None and isinstance(self.start, Fresh):
            raise ValueError("lora adapts trained weights: it needs start.run, a run folder to start from")

    def without_operational_fields(self) -> Self:
        """This configuration with every OPERATIONAL field of the loop at its default."""
        return replace(self, loop=self.loop.without_operational_fields())

    def without_places(self) -> Self:
        """This configuration without the folders that the run reads: features and starting weights.

        What was in them is compared by digests, so that a run may be resumed after they were moved."""
        return replace(self, data=_numbered(self.data), start=self.start.without_places())


@dataclass(frozen=True, kw_only=True)
class DistillRun:
    """A distillation run: data, the teacher's run folder, the student's initial network, method and loop."""

    data: tuple[Path, ...]
    """Feature folders to train on, all together."""
    repeat: tuple[int, ...] = ()
    """How often each folder is repeated in an epoch, one number per folder; without any, once each."""
    teacher: Path
    """Run folder of the teacher."""
    student: FromWeights | None = None
    """Start from the student of an earlier run, its embedding of t - r included; else from the teacher's weights."""
    lora: LoRAConfig | None = None
    """Train low-rank adapters beside frozen weights, and in full only what the teacher lacks: the embedding of t - r
    and whatever else is new or fitted anew."""
    method: Method = field(default_factory=Method)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _check_sets(self.data, self.repeat)

    def without_operational_fields(self) -> Self:
        """This configuration with every OPERATIONAL field of the loop at its default."""
        return replace(self, loop=self.loop.without_operational_fields())

    def without_places(self) -> Self:
        """This configuration without the folders that the run reads: features, teacher and starting weights.

        What was in them is compared by digests, so that a run may be resumed after they were moved."""
        student = None if self.student is None else self.student.without_places()
        return replace(self, data=_numbered(self.data), teacher=Path(), student=student)


def _check_sets(data: tuple[Path, ...], repeat: tuple[int, ...]) -> None:
    if not data:
        raise ValueError("data must name at least one feature folder")
    if repeat and len(repeat) != len(data):
        raise ValueError(f"repeat needs one number per folder of data ({len(data)}), got {repeat}")
    if any(count < 1 for count in repeat):
        raise ValueError(f"repeat must be at least 1 everywhere, got {repeat}")


def with_current_names(plain: Any) -> Any:
    """Values read from config.json, with former class names replaced by the present ones (`FORMER_NAMES`)."""
    if isinstance(plain, dict):
        return {
            key: FORMER_NAMES.get(value, value) if key == TAG and isinstance(value, str) else with_current_names(value)
            for key, value in plain.items()
        }
    return [with_current_names(value) for value in plain] if isinstance(plain, list) else plain


def _numbered(data: tuple[Path, ...]) -> tuple[Path, ...]:
    """Placeholders for folders, as many as there are."""
    return tuple(Path(str(k)) for k in range(len(data)))
