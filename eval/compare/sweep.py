"""Runs a generator over step counts and seeds, scores it and appends rows as they are finished."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from eval.compare.rows import Kind, Row, Task, embeddings_path, ids_digest, json_line, read_rows, safe_name, sealed
from eval.compare.scorer import Scorer, Scores
from eval.features.cache import in_parts, write_row_features
from eval.features.clip_features import ClipFeatures
from teacher.files.lines import append_lines
from teacher.files.processes import Processes
from teacher.media import write_audio
from teacher.network.conditions import Conditions
from teacher.sampling.generator import clip_seed

PART = 32
"""Clips generated, scored and written at a time; what a killed run loses at most."""


class Generate(Protocol):
    """A function from conditions to sound, in which the caller binds model, sampler and guidance."""

    def __call__(self, conditions: Conditions, steps: int, seeds: Sequence[int]) -> Tensor:
        """conditions of B clips, number of steps, one noise seed per clip -> waves (B, samples)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Clips:
    """The clips to generate: their ids, and a function that gives the conditions of clips first .. last - 1."""

    ids: tuple[str, ...]
    conditions: Callable[[int, int], Conditions]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The facts about the origin of a row."""

    config_digest: str
    run_id: str
    command: str
    machine: Mapping[str, str] = field(default_factory=dict)
    params: int | None = None
    """Parameters of the generating network."""
    duration_s: float | None = None
    """Duration of one clip."""
    kind: Kind | None = None
    """The kind of model, where its name does not state it."""


@dataclass(frozen=True, kw_only=True)
class SavedAudio:
    """Which waves are saved: those of the first `count` clips of one seed, as WAV files in `folder`."""

    folder: Path
    count: int
    seed: int
    comment: str | None = None
    """The comment in the tags of every file: the licence of the weights."""

    def path(self, task: Task, model: str, steps: int, guidance: float, clip_id: str) -> Path:
        """File of one clip; model and id are made safe for a file name."""
        setting = f"{task}-{safe_name(model)}-{steps}-g{guidance:g}-s{self.seed}"
        return self.folder / f"{setting}-{safe_name(clip_id)}.wav"


def sweep(
    generate: Generate,
    clips: Clips,
    *,
    task: Task,
    model: str,
    steps: Sequence[int],
    seeds: Sequence[int],
    scorer: Scorer,
    rows_path: Path,
    origin: Origin,
    guidance: float = 1.0,
    evaluations_per_step: int = 1,
    part_size: int = PART,
    processes: Processes | None = None,
    rtf: Callable[[int], Mapping[str, float]] | None = None,
    audio: SavedAudio | None = None,
) -> Iterator[Row]:
    """Generate, score and append one row per step count and seed; yields every row, finished ones included.

    A row already in `rows_path` with the same key and configuration digest is not made again; of an unfinished one the
    parts in parts/ are not. Clips are dealt to the processes part by part; the lead alone appends rows and yields them.
    Scores of single clips go to clips.jsonl beside the rows. For "tta" the video conditions are removed. The lead calls
    `rtf` once per step count that has to run.

    Raises:
        ValueError: clips and scorer that do not hold the same ids in the same order, or waves that are not finite.
    """
    if clips.ids != scorer.ids:
        raise ValueError("clips and scorer must hold the same ids in the same order; build both from one list")
    if evaluations_per_step < 1 or part_size < 1 or min(steps) < 1:
        raise ValueError("steps, evaluations_per_step and part_size must be at least 1")
    together = processes or Processes(rows_path.parent)
    for count in steps:
        timings: Mapping[str, float] | None = None
        for seed in seeds:
            done = finished(rows_path, (task, model, count, guidance, seed), origin.config_digest)
            if done is not None:
                if together.lead:
                    yield done
                continue
            if timings is None and together.lead:
                timings = rtf(count) if rtf is not None else {}
            folder = parts_folder(rows_path, origin, task, model, count, seed)

            def make(first: int, last: int, count: int = count, seed: int = seed, folder: Path = folder) -> None:
                conditions = clips.conditions(first, last)
                conditions = conditions if task == "vta" else conditions.without_video()
                waves = _generated(generate, clips.ids[first:last], conditions, count, seed)
                if audio is not None and audio.seed == seed:
                    files = [
                        audio.path(task, model, count, guidance, i) for i in clips.ids[first : min(last, audio.count)]
                    ]
                    write_waves(waves, files, scorer.sample_rate, audio.comment)
                scorer.features(first, waves, task).write(part_path(folder, first, last))

            paths = in_parts(
                len(clips.ids),
                part_size,
                path=partial(part_path, folder),
                make=make,
                processes=together,
                what=f"{task} {model}, {count} steps, seed {seed}",
                wait=together.lead,
            )
            if together.lead:
                features = ClipFeatures.join([ClipFeatures.read(path)[0] for path in paths])
                yield record(
                    features,
                    scorer.score(features),
                    rows_path=rows_path,
                    task=task,
                    model=model,
                    steps=count,
                    seed=seed,
                    nfe=count * evaluations_per_step,
                    guidance=guidance,
                    rtf=timings,
                    origin=origin,
                    reference=scorer.reference,
                )
                shutil.rmtree(folder, ignore_errors=True)


def record(
    features: ClipFeatures,
    scores: Scores,
    *,
    rows_path: Path,
    task: Task,
    model: str,
    origin: Origin,
    reference: ClipFeatures,
    steps: int = 0,
    seed: int = 0,
    nfe: int = 0,
    guidance: float = 1.0,
    rtf: Mapping[str, float] | None = None,
    own: ClipFeatures | None = None,
) -> Row:
    """Append scores as a row, after those of single clips to clips.jsonl; floors and ceilings are rows of 0 steps.

    Features of the generated and of the reference clips go to embeddings/. `own` gives inception score and number of
    clips, if not `features` does: in the row of real sound, whose distances are those of other real clips.
    """
    clips = features if own is None else own
    row = Row(
        task=task,
        model=model,
        steps=steps,
        seed=seed,
        nfe=nfe,
        guidance=guidance,
        metrics=dict(scores.metrics),
        estimates=dict(scores.estimates),
        rtf=dict(rtf or {}),
        num_clips=len(clips),
        clips_digest=ids_digest(clips.ids),
        **asdict(origin),
    )
    labels = {"task": task, "model": model, "steps": steps, "seed": seed, "config_digest": origin.config_digest}
    if scores.per_clip:
        lines = [
            sealed(json_line(labels | {"id": clip_id} | dict(entry)))
            for clip_id, entry in zip(clips.ids, scores.per_clip, strict=True)
        ]
        append_lines(rows_path.with_name("clips.jsonl"), lines)
    path = embeddings_path(rows_path, row)
    write_row_features(path, features, reference, config_digest=row.config_digest)
    append_lines(rows_path, [sealed(row.to_json())])
    return row


def finished(rows_path: Path, key: tuple[str, str, int, float, int], config_digest: str) -> Row | None:
    """The current row of a key if it was made with this configuration."""
    for row in read_rows(rows_path):
        if row.key == key and row.config_digest == config_digest:
            return row
    return None


def parts_folder(rows_path: Path, origin: Origin, task: Task, model: str, steps: int, seed: int) -> Path:
    """The folder of the parts of an unfinished row, which is empty once the row is finished."""
    return rows_path.parent / "parts" / f"{task}-{safe_name(model)}-{steps}-{seed}-{origin.config_digest[:16]}"


def part_path(folder: Path, first: int, last: int) -> Path:
    """File of clips first .. last - 1."""
    return folder / f"{first:06d}-{last:06d}.safetensors"


def write_waves(waves: Tensor, paths: Sequence[Path], sample_rate: int, comment: str | None) -> None:
    """Write the first waves to `paths`."""
    for path, wave in zip(paths, waves, strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, wave.numpy(), sample_rate, comment=comment)


def _generated(generate: Generate, ids: Sequence[str], conditions: Conditions, steps: int, seed: int) -> Tensor:
    waves = generate(conditions, steps, [clip_seed(seed, clip_id) for clip_id in ids])
    if waves.ndim != 2 or len(waves) != len(ids):
        raise ValueError(f"generate must return ({len(ids)}, samples), got {tuple(waves.shape)}")
    broken = [clip_id for clip_id, ok in zip(ids, torch.isfinite(waves).all(dim=1).tolist(), strict=True) if not ok]
    if broken:
        raise ValueError(f"generated waves must be finite; with {steps} steps and seed {seed} not so: {broken[:5]}")
    return waves.detach().float().cpu()
