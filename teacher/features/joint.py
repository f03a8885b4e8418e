"""Several feature sets as one: repeats balance them, and modalities of either kind can be masked.

MMAudio trains on audio-visual-text and audio-text data about 1 : 1 by repeating the audio-visual set five times, three
times for its larger networks, before each epoch is shuffled (arXiv 2412.15322, section 3.5.1 and appendix H).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from teacher.features.dataset import FeatureSet, as_rows, finish_batch
from teacher.features.rows import Gathered, Records
from teacher.features.store import FeatureError, Record
from teacher.network.batch import Batch, BatchSlice
from teacher.network.conditions import Conditions
from teacher.network.sequence import SequenceConfig

COMPARED = ("duration_s", "sequence", "encoders")
"""Entries of features.json that sets trained on together must share; and the latent space of their codecs."""


Modalities = Literal["AVT+AT", "AV+AT", "AVT+A", "AVT", "AV"]
"""Modalities used of rows with picture + of rows without (arXiv 2412.15322, table 4). A: audio, V: video, T: text."""


@dataclass(frozen=True, kw_only=True)
class Masking:
    """What a choice of `Modalities` hides."""

    hide_video_text: bool = False
    """AV: rows with picture lose their text."""
    hide_sound_text: bool = False
    """+A: rows without picture lose their text."""
    leave_out_sounds: bool = False
    """Without +: rows without picture are left out."""

    @classmethod
    def parse(cls, modalities: str) -> "Masking":
        """From one of `Modalities`; ValueError otherwise."""
        if modalities not in get_args(Modalities):
            raise ValueError(f"modalities must be one of {', '.join(get_args(Modalities))}, got {modalities!r}")
        video, _, sound = modalities.partition("+")
        return cls(hide_video_text=video == "AV", hide_sound_text=sound == "A", leave_out_sounds=not sound)

    def __call__(self, conditions: Conditions, has_video: Tensor) -> Conditions:
        """Conditions with the text of either kind of rows marked absent."""
        hidden = (has_video & self.hide_video_text) | (~has_video & self.hide_sound_text)
        return replace(conditions, has_text=conditions.has_text & ~hidden)


class JointSet:
    """Rows of several sets, each set `repeat` times over: same interface as `FeatureSet`.

    An epoch of `batch_indices` is a permutation of the repeated concatenation. All latents are normalised by the
    statistics of the first set: name the audio-visual set first, as MMAudio takes its statistics from there.
    """

    def __init__(self, parts: Sequence[tuple[FeatureSet, int]], *, modalities: Modalities = "AVT+AT") -> None:
        """Raises FeatureError when sets differ in duration, sequence, codec or encoders, or when no row remains."""
        if not parts:
            raise FeatureError("a joint set needs at least one set of features")
        first = parts[0][0]
        self.modalities, self.masking = modalities, Masking.parse(modalities)
        for features, repeat in parts:
            if repeat < 1:
                raise FeatureError(f"{features.folder}: repeat must be at least 1, got {repeat}")
            _check_same(first, features)
        self.latent_mean, self.latent_std = first.latent_mean, first.latent_std
        self.parts = tuple(
            (features.with_statistics(first.latent_mean, first.latent_std), repeat) for features, repeat in parts
        )
        self._rows = [self._kept(features) for features, _ in self.parts]
        self._ends: list[int] = []
        for (_, repeat), kept in zip(self.parts, self._rows, strict=True):
            self._ends.append((self._ends[-1] if self._ends else 0) + repeat * len(kept))
        if len(self) == 0:
            raise FeatureError(f"modalities {self.modalities} leave no row: none has a picture")

    @classmethod
    def open(
        cls,
        folders: Sequence[Path],
        split: str,
        *,
        repeat: Sequence[int] = (),
        modalities: Modalities = "AVT+AT",
        statistics: tuple[Tensor, Tensor] | None = None,
    ) -> "JointSet":
        """One split of several folders; `repeat` holds one number per folder, () standing for 1 each.

        `statistics` (mean, std) replace those of the first folder.
        """
        repeats = tuple(repeat) or (1,) * len(folders)
        if len(repeats) != len(folders):
            raise FeatureError(f"repeat must have one number per folder of features, got {repeats} for {len(folders)}")
        opened = [FeatureSet.open(folder, split, statistics=statistics) for folder in folders]
        return cls(list(zip(opened, repeats, strict=True)), modalities=modalities)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def info(self) -> dict[str, Any]:
        """features.json of the first set, with the digests and repeats of all."""
        first = self.parts[0][0].info
        joint = [{"digest": features.info["digest"], "repeat": repeat} for features, repeat in self.parts]
        return first | {"joint": joint, "modalities": self.modalities}

    @property
    def records(self) -> Sequence[Record]:
        """One per row, repeats included; a masked caption is still the record's."""

        def get(index: int) -> Record:
            which, row = (int(found) for found in self.locate(torch.tensor([index])))
            return self.parts[which][0].records[row]

        return Records(len(self), get)

    @property
    def duration_s(self) -> float:
        return self.parts[0][0].duration_s

    @property
    def sequence(self) -> SequenceConfig:
        """Rates of the latents."""
        return self.parts[0][0].sequence

    def batch(
        self,
        indices: Sequence[int] | Tensor,
        *,
        generator: torch.Generator | None = None,
        batch_slice: BatchSlice | None = None,
    ) -> Batch:
        """Rows `indices` in that order, from whichever sets they fall into; see `FeatureSet.batch`."""
        wanted = as_rows(indices, len(self))
        which, rows = self.locate(wanted)
        batch_slices = [(features, torch.nonzero(which == k).flatten()) for k, (features, _) in enumerate(self.parts)]
        has_video = np.zeros(len(wanted), np.bool_)
        for features, places in batch_slices:
            has_video[places.numpy()] = features.has_video[rows[places]].numpy()
        first = self.parts[0][0].rows
        gathered = Gathered.blank(first.layout, has_video, first.buffers)
        for features, places in batch_slices:
            if len(places):
                features.rows.fill(rows[places], places.numpy(), gathered)
        batch = finish_batch(gathered, wanted, self, generator, batch_slice)
        return replace(batch, conditions=self.masking(batch.conditions, batch.conditions.has_clip))

    def locate(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Set number and row within that set of joint rows, both int64."""
        which = torch.bucketize(indices, torch.tensor(self._ends), right=True)
        rows = torch.empty_like(indices)
        for k, kept in enumerate(self._rows):
            here = which == k
            rows[here] = kept[(indices[here] - (self._ends[k - 1] if k else 0)) % max(1, len(kept))]
        return which, rows

    def _kept(self, features: FeatureSet) -> Tensor:
        """Rows of a set that take part."""
        if self.masking.leave_out_sounds:
            return torch.nonzero(features.has_video).flatten()
        return torch.arange(len(features))


def _check_same(first: FeatureSet, other: FeatureSet) -> None:
    """FeatureError naming the folders and what differs."""
    differing = [name for name in COMPARED if first.info[name] != other.info[name]]
    if first.info["codec"]["latent_space"] != other.info["codec"]["latent_space"]:
        differing.append("codec")
    if differing:
        raise FeatureError(
            f"{first.folder} and {other.folder} differ in {' and '.join(differing)}; extract the second with the "
            "settings of the first and --codec-from the first"
        )
