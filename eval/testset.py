"""The clips a comparison is made on: their real sound, conditions, events, and the scorer built from them."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from eval.clip_judges import ClipJudge, OnsetJudge
from eval.heard import Heard
from eval.listeners import Listener, hear
from eval.rows import check_distinct
from eval.scorer import Scorer
from eval.store import FeatureCache, FileDigests, in_parts
from eval.sweep import PART, Clips
from eval.training_sounds import heard_window, read_waves
from meanflow.config import digest
from teacher.conditions import Conditions
from teacher.data.dataset import FeatureSet
from teacher.data.processes import Processes
from teacher.data.store import Record

Unreadable = Literal["fail", "exclude"]
"""What happens when the real sound of a test clip cannot be read: the run fails, or the clip is left out for every
model and listed. It is never replaced by another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TestSet:
    """Held-out clips of one task with everything scoring needs; sound and conditions are read when asked for."""

    __test__ = False

    features: FeatureSet
    records: tuple[Record, ...]
    rows: tuple[int, ...]
    """Row of each record in `features`."""
    scorer: Scorer
    excluded: tuple[tuple[str, str], ...] = ()
    """Clips whose sound cannot be read, and why; in none of the other fields, so no model is scored on them."""
    sounds: str = ""
    """Digest of the media files and what they were heard by; belongs to the configuration of every row."""

    @classmethod
    def build(
        cls,
        folder: Path,
        *,
        video: bool,
        max_clips: int,
        listeners: Sequence[Listener],
        judges: Sequence[ClipJudge] = (OnsetJudge(),),
        cache: Path,
        unreadable: Unreadable = "fail",
        only: Collection[str] | None = None,
        costly: bool = False,
        part_size: int = PART,
        processes: Processes | None = None,
    ) -> Self:
        """Test-split clips with picture (`video`) or all of them, evenly spaced if there are more than `max_clips`.

        `only`: these ids and no others, as in a list of ids that were scored before; `max_clips` does not apply.
        Clips are chosen before any file is read: one that cannot be read makes the set smaller, never different.
        What the listeners say of the real sound is kept in `cache` under the digests of the files.

        Raises ValueError if an id of `only` is not there, a clip cannot be read while `unreadable` is "fail", or fewer
        than two remain.
        """
        if unreadable not in get_args(Unreadable):
            raise ValueError(f"unreadable must be one of {', '.join(get_args(Unreadable))}, got {unreadable!r}")
        features = FeatureSet.open(folder, "test")
        index = [k for k, r in enumerate(features.records) if r.has_video or not video]
        if len(index) < 2:
            raise ValueError(f"{folder} has {len(index)} test clips{' with picture' if video else ''}; 2 are needed")
        if only is not None:
            index = _chosen(features.records, index, only, folder)
        elif len(index) > max_clips:
            index = [index[k * len(index) // max_clips] for k in range(max_clips)]
        check_distinct([features.records[k].id for k in index])
        together = processes or Processes(cache)
        digests = FileDigests(folder=cache, process=together.rank)
        parts = _Reference(
            features=features, listeners=tuple(listeners), cache=cache, digests=digests, unreadable=unreadable
        )
        files = in_parts(
            len(index),
            part_size,
            path=lambda first, last: parts.path(index[first:last]),
            make=lambda first, last: parts.make(index[first:last]),
            processes=together,
            what="the real sounds",
        )
        read = [Heard.read(file) for file in files]
        excluded = tuple((i, reason) for _, facts in read for i, reason in json.loads(facts["excluded"]))
        if excluded and unreadable == "fail":
            record = next(r for r in (features.records[k] for k in index) if r.id == excluded[0][0])
            raise ValueError(features.gone(record, excluded[0][1]))
        gone = {clip_id for clip_id, _ in excluded}
        rows = tuple(k for k in index if features.records[k].id not in gone)
        if len(rows) < 2:
            raise ValueError(f"{folder}: {len(rows)} of {len(index)} test clips can be read; 2 are needed")
        records = tuple(features.records[k] for k in rows)
        scorer = Scorer(
            listeners=tuple(listeners),
            judges=tuple(judges),
            records=records,
            reference=Heard.join([heard for heard, _ in read if len(heard)]),
            sample_rate=features.sequence.sample_rate,
            num_samples=round(features.duration_s * features.sequence.sample_rate),
            costly=costly,
        )
        return cls(
            features=features, records=records, rows=rows, scorer=scorer, excluded=excluded, sounds=parts.digest(rows)
        )

    @property
    def clips(self) -> Clips:
        """Ids and conditions."""
        return Clips(ids=self.scorer.ids, conditions=self._conditions)

    def _conditions(self, first: int, last: int) -> Conditions:
        return self.features.batch(list(self.rows[first:last])).conditions

    def waves(self, first: int, last: int) -> Tensor:
        """Real sound of clips first .. last - 1, (clips, samples), as the codec saw it in training."""
        return read_waves(self.features, self.records[first:last])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reference:
    """What the listeners say of real sound, on disk."""

    features: FeatureSet
    listeners: tuple[Listener, ...]
    cache: Path
    digests: FileDigests
    unreadable: Unreadable

    def path(self, rows: Sequence[int]) -> Path:
        return FeatureCache(folder=self.cache).path(self._what(rows))

    def digest(self, rows: Sequence[int]) -> str:
        return digest(self._what(rows))

    def make(self, rows: Sequence[int]) -> None:
        waves, ids, excluded = [], [], []
        for record in (self.features.records[k] for k in rows):
            wave = heard_window(self.features, record)
            if isinstance(wave, str):
                if self.unreadable == "fail":  # not kept: it may be readable the next time
                    raise ValueError(self.features.gone(record, wave))
                excluded.append((record.id, wave))
            else:
                waves.append(wave)
                ids.append(record.id)
        rate = self.features.sequence.sample_rate
        heard = hear(self.listeners, ids, torch.stack(waves), rate) if waves else Heard(ids=(), tensors={})
        heard.write(self.path(rows), {"excluded": json.dumps(excluded)})

    def _what(self, rows: Sequence[int]) -> dict[str, object]:
        records = [self.features.records[k] for k in rows]
        return {
            "clips": [(r.id, self.digests.of(Path(r.path)), r.start_s) for r in records],
            "listeners": [one.name for one in self.listeners],
            "seconds": self.features.duration_s,
            "unreadable": self.unreadable,
            "rate": self.features.sequence.sample_rate,
            "peak": self.features.info["config"]["peak_normalise"],
        }


def _chosen(records: Sequence[Record], index: list[int], only: Collection[str], folder: Path) -> list[int]:
    """Rows of `index` whose ids are in `only`."""
    wanted = set(only)
    chosen = [k for k in index if records[k].id in wanted]
    missing = sorted(wanted - {records[k].id for k in chosen})
    if missing:
        raise ValueError(
            f"{folder} has no test clips {', '.join(missing[:5])}; {len(missing)} of {len(wanted)} missing"
        )
    return chosen
