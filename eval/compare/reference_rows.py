"""The rows of real sound, and of real sound through the codec and back: the floor and the ceiling of every model."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from eval.compare.rows import Row, Task
from eval.compare.scorer import Scorer, Scores
from eval.compare.sweep import PART, Origin, finished, part_path, parts_folder, record
from eval.features.cache import in_parts
from eval.features.clip_features import ClipFeatures
from eval.metrics import clip_metrics, pooled, pooled_intervals
from teacher.files.processes import Processes

Waves = Callable[[int, int], Tensor]
"""Real sound of clips first .. last - 1, (clips, samples)."""


def reference_rows(
    scorer: Scorer,
    *,
    real: Waves,
    other: Callable[[], ClipFeatures],
    roundtrip: Callable[[Tensor], Tensor],
    task: Task,
    rows_path: Path,
    origin: Origin,
    part_size: int = PART,
    processes: Processes | None = None,
) -> Iterator[Row]:
    """The rows "reference" and "codec", both with 0 steps.

    "reference": real clips. Distances are those of `other()`, real clips that are not in the test set (as many as
    possible, best the same number); inception score, alignment and onsets are those of the real clips themselves, so
    its onset F1 is what the detector reaches on the truth. "codec": `roundtrip` of the real clips, as for any model.
    """
    together = processes or Processes(rows_path.parent)

    def both(first: int, last: int) -> None:
        waves = real(first, last)
        for model, made in (("reference", lambda: waves), ("codec", lambda: roundtrip(waves))):
            path = part_path(folders[model], first, last)
            if not path.exists():
                scorer.features(first, made(), task).write(path)

    folders = {model: parts_folder(rows_path, origin, task, model, 0, 0) for model in ("reference", "codec")}
    done = {model: finished(rows_path, (task, model, 0, 1.0, 0), origin.config_digest) for model in folders}
    if None in done.values():
        files = in_parts(
            len(scorer.ids),
            part_size,
            path=partial(part_path, folders["codec"]),
            make=both,
            processes=together,
            what=f"{task} real sound",
            wait=together.lead,
        )
    if not together.lead:
        return
    for model, row in done.items():
        if row is not None:
            yield row
            continue
        features = ClipFeatures.join([ClipFeatures.read(folders[model] / file.name)[0] for file in files])
        if model == "reference":
            yield _real_row(scorer, features, other(), task, rows_path, origin)
        else:
            yield _codec_row(scorer, features, task, rows_path, origin)
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)


def _codec_row(scorer: Scorer, features: ClipFeatures, task: Task, rows_path: Path, origin: Origin) -> Row:
    return record(
        features,
        scorer.score(features),
        rows_path=rows_path,
        task=task,
        model="codec",
        origin=origin,
        reference=scorer.reference,
    )


def _real_row(
    scorer: Scorer, features: ClipFeatures, other: ClipFeatures, task: Task, rows_path: Path, origin: Origin
) -> Row:
    # A divergence of a clip from itself does not measure real sound.
    paired = {metric.key for metric in clip_metrics() if metric.divergence is not None}
    per_clip = tuple(
        {name: value for name, value in entry.items() if name not in paired} for entry in features.per_clip
    )
    floor = scorer.set_scores(other, uses_reference=True)
    own = scorer.set_scores(scorer.reference, uses_reference=False)
    fewer = {"distance_clips": float(len(other))} if len(other) != len(features) else {}
    scores = Scores(
        metrics={**floor.metrics, **fewer, **own.metrics, **pooled(per_clip)},
        per_clip=per_clip,
        estimates={**floor.estimates, **own.estimates, **pooled_intervals(per_clip)},
    )
    return record(
        other,
        scores,
        rows_path=rows_path,
        task=task,
        model="reference",
        origin=origin,
        reference=scorer.reference,
        own=ClipFeatures(ids=features.ids, tensors=features.tensors, per_clip=per_clip),
    )
