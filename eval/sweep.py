"""Runs a generator over step counts and seeds, scores it and appends rows as they are finished."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from eval.kept_embeddings import keep_embeddings
from eval.rows import Model, Row, Task, append_lines, ids_digest, json_line, read_rows
from eval.scorer import Scorer, Scores
from teacher.conditions import Conditions
from teacher.data.media import write_audio
from teacher.generate import clip_seed


class Generate(Protocol):
    """Turns conditions into sound. The caller closes over model, sampler and guidance; nothing here loads a model."""

    def __call__(self, conditions: Conditions, steps: int, seeds: Sequence[int]) -> Tensor:
        """conditions of B clips, number of steps, one noise seed per clip -> waves (B, samples)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Clips:
    """The clips to generate: one id per row of `conditions`."""

    ids: tuple[str, ...]
    conditions: Conditions

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.conditions):
            raise ValueError(f"ids must be one per condition row, got {len(self.ids)} and {len(self.conditions)}")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a row comes from."""

    config_digest: str
    run_id: str
    command: str
    machine: Mapping[str, str] = field(default_factory=dict)
    params: int | None = None
    """Parameters of the generating network."""
    duration_s: float | None = None
    """Duration of one clip."""


@dataclass(frozen=True, kw_only=True)
class KeptAudio:
    """Which waves to keep: the first `count` clips of one seed, as WAV files in `folder`."""

    folder: Path
    count: int
    seed: int
    comment: str | None = None
    """Goes into the tags of every file: the licence of the weights."""

    def path(self, task: Task, model: Model, steps: int, clip_id: str) -> Path:
        """File of one clip; the id is made safe for a file name."""
        return self.folder / f"{task}-{model}-{steps}-{safe_name(clip_id)}.wav"


def safe_name(clip_id: str) -> str:
    """The id as a file name: letters, digits, dot, dash and underscore, with a digest where anything was replaced."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", clip_id).strip(".")[:80]
    return name if name == clip_id else f"{name}-{hashlib.sha256(clip_id.encode()).hexdigest()[:8]}"


def sweep(
    generate: Generate,
    clips: Clips,
    *,
    task: Task,
    model: Model,
    steps: Sequence[int],
    seeds: Sequence[int],
    scorer: Scorer,
    rows_path: Path,
    origin: Origin,
    guidance: float = 1.0,
    evaluations_per_step: int = 1,
    batch_size: int = 32,
    rtf: Callable[[int], Mapping[str, float]] | None = None,
    keep: KeptAudio | None = None,
) -> Iterator[Row]:
    """Generate, score and append one row per step count and seed; yields every row, finished ones included.

    A row already in `rows_path` with the same task, model, steps, seed and configuration digest is not made again.
    Scores of single clips go to clips.jsonl beside it. For "tta" the video conditions are taken away and timing
    is not scored. `rtf` is called once per step count that has to run.

    Raises:
        ValueError: clips and scorer that do not hold the same ids in the same order, or waves that are not finite.
    """
    if clips.ids != scorer.ids:
        raise ValueError("clips and scorer must hold the same ids in the same order; build both from one list")
    if evaluations_per_step < 1 or batch_size < 1 or min(steps) < 1:
        raise ValueError("steps, evaluations_per_step and batch_size must be at least 1")
    conditions = clips.conditions if task == "vta" else clips.conditions.without_video()
    for count in steps:
        timings: Mapping[str, float] | None = None
        for seed in seeds:
            done = _finished(rows_path, (task, model, count, seed), origin.config_digest)
            if done is not None:
                yield done
                continue
            if timings is None:
                timings = rtf(count) if rtf is not None else {}
            waves = _generate_all(generate, clips.ids, conditions, count, seed, batch_size)
            if keep is not None and keep.seed == seed:
                _keep(waves, clips.ids, scorer.extractor.sample_rate, keep, task, model, count)
            yield record(
                scorer.score(waves, timing=task == "vta"),
                rows_path=rows_path,
                ids=clips.ids,
                task=task,
                model=model,
                steps=count,
                seed=seed,
                nfe=count * evaluations_per_step,
                guidance=guidance,
                rtf=timings,
                origin=origin,
                scorer=scorer,
            )


def record(
    scores: Scores,
    *,
    rows_path: Path,
    ids: Sequence[str],
    task: Task,
    model: Model,
    origin: Origin,
    steps: int = 0,
    seed: int = 0,
    nfe: int = 0,
    guidance: float = 1.0,
    rtf: Mapping[str, float] | None = None,
    scorer: Scorer | None = None,
) -> Row:
    """Append scores as a row, those of single clips first; also the way floors and ceilings enter (steps 0).

    With the scorer, the features and logits the scores were computed from are kept in embeddings/.
    """
    row = Row(
        task=task,
        model=model,
        steps=steps,
        seed=seed,
        nfe=nfe,
        guidance=guidance,
        metrics=dict(scores.metrics),
        rtf=dict(rtf or {}),
        num_clips=len(ids),
        clips_digest=ids_digest(ids),
        **asdict(origin),
    )
    labels = {"task": task, "model": model, "steps": steps, "seed": seed, "config_digest": origin.config_digest}
    if scores.per_clip:
        lines = [
            json_line(labels | {"id": clip_id} | dict(entry))
            for clip_id, entry in zip(ids, scores.per_clip, strict=True)
        ]
        append_lines(rows_path.with_name("clips.jsonl"), lines)
    if scorer is not None and scores.embeddings:
        reference = scorer.reference_embeddings()
        keep_embeddings(rows_path, row, scores.embeddings, reference, splits=scorer.inception_splits)
    append_lines(rows_path, [row.to_json()])
    return row


def reference_rows(
    scorer: Scorer,
    *,
    reference: Tensor,
    other: Tensor,
    reconstruction: Tensor,
    tasks: Sequence[Task],
    rows_path: Path,
    origin: Origin,
) -> Iterator[Row]:
    """The floor and the ceiling every model is read against, one row each per task, as steps 0.

    "reference": real clips. Frechet and kernel distance are those of `other`, real clips that are not in the test set
    (as many as possible, best the same number); inception score and onsets those of `reference` itself, so its onset
    F1 is what the detector reaches on the truth. "codec": `reconstruction`, the reference through the codec and back.
    """
    for task in tasks:
        timing = task == "vta"
        own, floor = scorer.score(reference, timing=timing), scorer.score_unpaired(other)
        distances = {name: floor.metrics[name] for name in ("frechet", "frechet_bias", "kad")}
        rest = {name: value for name, value in own.metrics.items() if name not in distances and name != "kl"}
        models: dict[Model, Scores] = {
            "reference": Scores(metrics=distances | rest, per_clip=(), embeddings=floor.embeddings),
            "codec": scorer.score(reconstruction, timing=timing),
        }
        for model, scores in models.items():
            done = _finished(rows_path, (task, model, 0, 0), origin.config_digest)
            yield done or record(
                scores, rows_path=rows_path, ids=scorer.ids, task=task, model=model, origin=origin, scorer=scorer
            )


def _finished(rows_path: Path, key: tuple[str, str, int, int], config_digest: str) -> Row | None:
    """The current row of a key if it was made with this configuration."""
    for row in read_rows(rows_path):
        if row.key == key and row.config_digest == config_digest:
            return row
    return None


def _generate_all(
    generate: Generate, ids: Sequence[str], conditions: Conditions, steps: int, seed: int, batch_size: int
) -> Tensor:
    parts = []
    for start in range(0, len(ids), batch_size):
        chunk = ids[start : start + batch_size]
        waves = generate(
            conditions.rows(slice(start, start + len(chunk))), steps, [clip_seed(seed, clip_id) for clip_id in chunk]
        )
        if waves.ndim != 2 or len(waves) != len(chunk):
            raise ValueError(f"generate must return ({len(chunk)}, samples), got {tuple(waves.shape)}")
        broken = [
            clip_id for clip_id, ok in zip(chunk, torch.isfinite(waves).all(dim=1).tolist(), strict=True) if not ok
        ]
        if broken:
            raise ValueError(f"generated waves must be finite; with {steps} steps and seed {seed} not so: {broken[:5]}")
        parts.append(waves.detach().float().cpu())
    return torch.cat(parts)


def _keep(
    waves: Tensor, ids: Sequence[str], sample_rate: int, keep: KeptAudio, task: Task, model: Model, steps: int
) -> None:
    keep.folder.mkdir(parents=True, exist_ok=True)
    for clip_id, wave in list(zip(ids, waves, strict=True))[: keep.count]:
        write_audio(keep.path(task, model, steps, clip_id), wave.numpy(), sample_rate, comment=keep.comment)
