"""Data sets of extracted features: batches of rows, and the rows of each training step.

`FeatureSet` is one split of a feature folder; opening it reads headers and indices, not features. `JointSet` joins
several of them: repeats balance their sizes, and modalities of rows with and without picture can be masked. MMAudio
trains on audio-visual-text and audio-text data about 1 : 1 by repeating the audio-visual set five times, three times
for its larger networks, before each epoch is shuffled (arXiv 2412.15322, section 3.5.1 and appendix H).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from teacher.features import store
from teacher.features.rows import Gathered, Records, Rows
from teacher.features.store import Record
from teacher.files import check_digests, read_digests
from teacher.files.errors import FeatureError
from teacher.files.tensor_file import RESTORE
from teacher.network.batch import Batch, BatchSlice
from teacher.network.conditions import Conditions
from teacher.network.sequence import SequenceConfig

COMPARED_AT_ONCE = 1 << 30
"""Largest split in bytes whose files are compared with digests.json when it is opened; takes about a second."""
COMPARED = ("duration_s", "sequence", "encoders")
"""Entries of features.json that must agree in sets that are trained on together, besides the codec's latent space."""


Modalities = Literal["AVT+AT", "AV+AT", "AVT+A", "AVT", "AV"]
"""Modalities of rows with picture + of rows without (arXiv 2412.15322, table 4). A: audio, V: video, T: text."""


class Examples(Protocol):
    """The interface of a set of training examples, which `FeatureSet` and `JointSet` have."""

    @property
    def info(self) -> dict[str, Any]:
        """Content of features.json."""
        ...

    @property
    def records(self) -> Sequence[Record]:
        """The record of every row."""
        ...

    @property
    def latent_mean(self) -> Tensor:
        """Mean (C,) that normalises the latents."""
        ...

    @property
    def latent_std(self) -> Tensor:
        """Standard deviation (C,) that normalises the latents."""
        ...

    @property
    def duration_s(self) -> float:
        """Duration of every example in seconds."""
        ...

    @property
    def sequence(self) -> SequenceConfig:
        """Rates of the latents."""
        ...

    def __len__(self) -> int: ...

    def batch(
        self,
        indices: Sequence[int] | Tensor,
        *,
        generator: torch.Generator | None = None,
        batch_slice: BatchSlice | None = None,
    ) -> Batch:
        """Rows `indices` as a batch; see `FeatureSet.batch`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSet:
    """One split of a feature folder, whose rows are read from disk when they are requested. Open it with `open`."""

    folder: Path
    info: dict[str, Any]
    """features.json: duration_s, digest, counts, configuration."""
    rows: Rows
    latent_mean: Float[Tensor, " channels"]
    """Statistics (C,) that normalise the latents: (z - latent_mean) / latent_std."""
    latent_std: Float[Tensor, " channels"]

    @classmethod
    def open(cls, folder: Path, split: str, *, statistics: tuple[Tensor, Tensor] | None = None) -> "FeatureSet":
        """Open a split; `statistics` (mean, std), each (C,), replace those of the folder.

        Raises FeatureError in one line when the folder is unfinished, damaged, of an older version or lacks the split.
        Files of a small split (COMPARED_AT_ONCE) are compared with digests.json now; rows of others when they are read.
        """
        folder = Path(folder)
        info = store.read_info(folder)
        if not info["counts"].get(split):
            found = ", ".join(f"{name} {count}" for name, count in info["counts"].items())
            raise FeatureError(f"{folder}: no examples in split {split!r} (found {found})")
        _check_small(folder, split, info)
        own = (torch.tensor(info["latent_mean"]), torch.tensor(info["latent_std"]))
        opened = cls(folder=folder, info=info, rows=Rows(folder, split, info), latent_mean=own[0], latent_std=own[1])
        return opened if statistics is None else opened.with_statistics(*statistics)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def records(self) -> Sequence[Record]:
        """The record of every row (id, caption, file, events); each is decoded when it is accessed."""
        return Records(len(self.rows), self.rows.record)

    @property
    def duration_s(self) -> float:
        """Duration of every example in seconds."""
        return float(self.info["duration_s"])

    @property
    def sequence(self) -> SequenceConfig:
        """Sample rate, hop length and downsampling of the latents."""
        return SequenceConfig(**self.info["sequence"])

    @property
    def has_video(self) -> Tensor:
        """Whether each row has a picture, (rows,) bool."""
        return self.rows.has_video

    def gone(self, record: Record, reason: str) -> str:
        """The message that the file of a record cannot be read, and what to do."""
        return (
            f"{record.path}: cannot be read any more ({reason}); it was looked for there and, in case it was moved "
            f"together with the features, beside and above {self.folder}: restore it or extract again"
        )

    def with_statistics(self, mean: Tensor, std: Tensor) -> "FeatureSet":
        """The same rows normalised by other statistics."""
        channels = (int(self.info["latent_channels"]),)
        mean, std = mean.detach().float().cpu().flatten(), std.detach().float().cpu().flatten()
        if tuple(mean.shape) != channels or tuple(std.shape) != channels or not bool((std > 0).all()):
            raise FeatureError(
                f"{self.folder}: statistics must be a mean and a positive std of shape {channels}, got "
                f"{tuple(mean.shape)} and {tuple(std.shape)}"
            )
        return replace(self, latent_mean=mean, latent_std=std)

    def batch(
        self,
        indices: Sequence[int] | Tensor,
        *,
        generator: torch.Generator | None = None,
        batch_slice: BatchSlice | None = None,
    ) -> Batch:
        """Rows `indices` in that order; latents are z = mean + std e with a generator and a codec with std, else mean.

        `batch_slice` describes which rows of a larger batch these are; e is drawn for the whole batch.

        Raises FeatureError when a latent is not finite; `verify` reads all features.
        """
        rows = as_rows(indices, len(self))
        gathered = self.rows.blank(self.has_video[rows].numpy())
        self.rows.fill(rows, np.arange(len(rows)), gathered)
        return finish_batch(gathered, rows, self, generator, batch_slice)

    def verify(self) -> None:
        """Read all features once; raises FeatureError naming a file that is damaged or holds NaN or infinity."""
        self.rows.verify()


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Masks modalities of training rows, as one choice of `Modalities` describes."""

    hide_video_text: bool = False
    """Mask the text of rows with picture (AV)."""
    hide_sound_text: bool = False
    """Mask the text of rows without picture (+A)."""
    leave_out_sounds: bool = False
    """Leave out rows without picture (choices without +)."""

    @classmethod
    def parse(cls, modalities: str) -> "Masking":
        """The masking for one of `Modalities`; ValueError for another text."""
        if modalities not in get_args(Modalities):
            raise ValueError(f"modalities must be one of {', '.join(get_args(Modalities))}, got {modalities!r}")
        video, _, sound = modalities.partition("+")
        return cls(hide_video_text=video == "AV", hide_sound_text=sound == "A", leave_out_sounds=not sound)

    def __call__(self, conditions: Conditions, has_video: Tensor) -> Conditions:
        """Conditions with masked texts marked absent; `has_video` (B,) tells rows with picture."""
        hidden = (has_video & self.hide_video_text) | (~has_video & self.hide_sound_text)
        return replace(conditions, has_text=conditions.has_text & ~hidden)


class JointSet:
    """Several sets joined, each repeated `repeat` times, with the interface of `FeatureSet`.

    An epoch of `batch_indices` is a permutation of the repeated concatenation. All latents are normalised by the
    statistics of the first set, so name the audio-visual set first as MMAudio does.
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
        self._rows = [self._used(features) for features, _ in self.parts]
        self._ends: list[int] = []
        for (_, repeat), rows in zip(self.parts, self._rows, strict=True):
            self._ends.append((self._ends[-1] if self._ends else 0) + repeat * len(rows))
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
        """Open one split of several folders; `repeat` has one number per folder, () means 1 for each.

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
        """The record of every row, repeats included; a record has its caption even if the text is masked."""

        def get(index: int) -> Record:
            which, row = (int(found) for found in self.locate(torch.tensor([index])))
            return self.parts[which][0].records[row]

        return Records(len(self), get)

    @property
    def duration_s(self) -> float:
        """Duration of every example in seconds."""
        return self.parts[0][0].duration_s

    @property
    def sequence(self) -> SequenceConfig:
        """Sample rate, hop length and downsampling of the latents."""
        return self.parts[0][0].sequence

    def batch(
        self,
        indices: Sequence[int] | Tensor,
        *,
        generator: torch.Generator | None = None,
        batch_slice: BatchSlice | None = None,
    ) -> Batch:
        """Rows `indices` of the joined sets in that order; see `FeatureSet.batch`."""
        wanted = as_rows(indices, len(self))
        which, rows = self.locate(wanted)
        batch_slices = [(features, torch.nonzero(which == k).flatten()) for k, (features, _) in enumerate(self.parts)]
        has_video = np.zeros(len(wanted), np.bool_)
        for features, places in batch_slices:
            has_video[places.numpy()] = features.has_video[rows[places]].numpy()
        gathered = self.parts[0][0].rows.blank(has_video)
        for features, places in batch_slices:
            if len(places):
                features.rows.fill(rows[places], places.numpy(), gathered)
        batch = finish_batch(gathered, wanted, self, generator, batch_slice)
        return replace(batch, conditions=self.masking(batch.conditions, batch.conditions.has_clip))

    def locate(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The number of the set of each joined row `indices` (B,), and its row in that set; both int64 (B,)."""
        which = torch.bucketize(indices, torch.tensor(self._ends), right=True)
        rows = torch.empty_like(indices)
        for k, used in enumerate(self._rows):
            here = which == k
            rows[here] = used[(indices[here] - (self._ends[k - 1] if k else 0)) % max(1, len(used))]
        return which, rows

    def _used(self, features: FeatureSet) -> Tensor:
        """Rows of a set that the modalities do not leave out."""
        if self.masking.leave_out_sounds:
            return torch.nonzero(features.has_video).flatten()
        return torch.arange(len(features))


def _check_same(first: FeatureSet, other: FeatureSet) -> None:
    """Raise FeatureError naming the folders if they differ in COMPARED or in the codec's latent space."""
    differing = [name for name in COMPARED if first.info[name] != other.info[name]]
    if first.info["codec"]["latent_space"] != other.info["codec"]["latent_space"]:
        differing.append("codec")
    if differing:
        raise FeatureError(
            f"{first.folder} and {other.folder} differ in {' and '.join(differing)}; extract the second with the "
            "settings of the first and --codec-from the first"
        )


def finish_batch(
    gathered: Gathered,
    rows: Tensor,
    examples: Examples,
    generator: torch.Generator | None,
    batch_slice: BatchSlice | None = None,
) -> Batch:
    """Draw from the posterior if there is a generator, then normalise: ((mean + std e) - latent_mean) / latent_std."""
    z = gathered.mean  # nobody else holds it yet
    if generator is not None and gathered.std is not None:
        batch_slice = batch_slice or BatchSlice.whole(len(z))
        e = batch_slice.of(torch.randn((batch_slice.total, *z.shape[1:]), generator=generator, device=generator.device))
        z += gathered.std * e.cpu().numpy()
    z -= examples.latent_mean.numpy()
    z /= examples.latent_std.numpy()
    if not np.isfinite(z.sum(dtype=np.float64)):  # finite exactly if every term is
        bad = int(rows[int(np.argmin(np.isfinite(z).all(axis=(1, 2))))])
        raise FeatureError(f"latents of {examples.records[bad].id} are not finite; extract its folder again")
    return Batch(latents=torch.from_numpy(z), conditions=gathered.conditions, indices=rows)


def as_rows(indices: Sequence[int] | Tensor, count: int) -> Tensor:
    """Indices as int64; IndexError unless they are a non-empty list within 0 .. count - 1."""
    rows = torch.as_tensor(indices, dtype=torch.int64)
    if rows.ndim != 1 or len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= count:
        raise IndexError(f"indices must be a non-empty list within 0..{count - 1}, got {rows.tolist()[:8]}")
    return rows


def batch_indices(num_items: int, batch_size: int, *, seed: int, step: int) -> Tensor:
    """Rows of training step `step`, (batch_size,) int64: a pure function of (seed, step), so that a run can resume.

    The steps read one endless list of rows, epoch after epoch, each epoch a permutation of its own without
    replacement; a batch may reach over the end of an epoch, or over several.
    """
    if num_items < 1 or batch_size < 1 or step < 0 or seed < 0:
        raise ValueError(
            f"num_items and batch_size must be at least 1, step and seed at least 0, "
            f"got {num_items}, {batch_size}, {step}, {seed}"
        )
    begin, end = step * batch_size, (step + 1) * batch_size
    rows: list[np.ndarray] = []
    for epoch in range(begin // num_items, (end - 1) // num_items + 1):
        order = _permutation(num_items, seed, epoch)
        rows.append(order[max(0, begin - epoch * num_items) : end - epoch * num_items])
    return torch.from_numpy(np.concatenate(rows))


@functools.lru_cache(maxsize=4)
def _permutation(num_items: int, seed: int, epoch: int) -> np.ndarray:
    """Cached, because shuffling two million rows takes longer than reading a batch of them."""
    return np.random.default_rng([seed, epoch]).permutation(num_items)


def _check_small(folder: Path, split: str, info: dict[str, Any]) -> None:
    """Raise FeatureError if a file of a split of at most COMPARED_AT_ONCE bytes differs from its recorded digest."""
    try:
        recorded = read_digests(folder)
        paths = [store.shard_path(folder, split, k) for k in range(int(info["shards"][split]))]
        paths += [store.text_path(folder, k) for k in range(-(-info["texts"]["count"] // info["texts"]["per_file"]))]
        names = ["features.json", "codec.safetensors", *(path.relative_to(folder).as_posix() for path in paths)]
        if sum(recorded[name][0] for name in names if name in recorded) > COMPARED_AT_ONCE:
            names = ["features.json"]
        faults = check_digests(folder, names)
    except ValueError as error:
        raise FeatureError(f"{error}; {RESTORE}") from error
    if faults:
        raise FeatureError(f"{faults[0]}{f' ({len(faults)} files differ)' if len(faults) > 1 else ''}; {RESTORE}")
