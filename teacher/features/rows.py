"""Rows of one split of a feature folder: indices in memory, features read on request into reused memory.

The memory of a batch is reused once nothing refers to it, because zeroing new pages costs the kernel as much as a copy.
"""

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from teacher.features.store import (
    INDICES,
    Record,
    ShardFile,
    ShardLayout,
    open_texts,
    read_captions,
    shard_path,
    stored_widths,
)
from teacher.files import Moved
from teacher.files.errors import FeatureError
from teacher.files.tensor_file import AGAIN, RESTORE, DamagedRow, OpenFiles, TensorFile, widen
from teacher.network.conditions import Conditions
from teacher.network.sequence import ConditionWidths, image_frames, sync_frames

FREE_ARRAYS = 2
"""Free arrays of each shape that stay allocated: one batch is in use while the next one is read."""


class Buffers:
    """Memory for batches: float32 arrays by shape, which return when the last tensor or view of them is gone.

    In another process a copy starts empty.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], deque[np.ndarray]] = {}
        self._zeros: dict[tuple[int, ...], np.ndarray] = {}

    def __reduce__(self) -> "tuple[type[Buffers], tuple[()]]":
        return Buffers, ()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """An uninitialised array; it may use the memory of a larger batch with rows of the same shape."""
        size, free = int(np.prod(shape)), self._free.setdefault(shape[1:], deque(maxlen=FREE_ARRAYS))
        try:
            memory = free.pop()
        except IndexError:
            memory = np.empty(size, np.float32)
        if memory.size < size:
            memory = np.empty(size, np.float32)
        array = memory[:size].reshape(shape)
        # What torch.from_numpy and tensors made of it hold is this array, not the memory below.
        weakref.finalize(array, free.append, memory).atexit = False
        return array

    def zeros(self, shape: tuple[int, ...]) -> np.ndarray:
        """Zeros, the same array each time, which must not be written to; its untouched pages take no memory."""
        have = self._zeros.get(shape[1:])
        if have is None or len(have) < shape[0]:
            have = self._zeros[shape[1:]] = np.zeros(shape, np.float32)
        return have[: shape[0]]


T = TypeVar("T")
Picks = list[tuple[TensorFile, int]]
"""Pairs of a file and the row to read from it."""
CACHED_LISTS = 64
"""Number of files whose decoded records or captions are cached."""


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Features of a batch, float32 arrays of B rows, filled by `Rows.fill`. NumPy uses the calling thread alone."""

    mean: np.ndarray
    std: np.ndarray | None
    clip: np.ndarray
    sync: np.ndarray
    text: np.ndarray
    has_video: np.ndarray
    has_text: np.ndarray

    @classmethod
    def blank(cls, layout: ShardLayout, widths: ConditionWidths, has_video: np.ndarray, buffers: Buffers) -> "Gathered":
        """Memory for B rows; rows whose `has_video` (B,) is False have zeros as features of the picture."""
        count = len(has_video)
        latents = (count, layout.latent_frames, layout.latent_channels)
        clip = (count, image_frames(layout.duration_s), widths.image)
        sync = (count, sync_frames(layout.duration_s), widths.sync)
        return cls(
            mean=buffers.take(latents),
            std=buffers.take(latents) if layout.has_std else None,
            clip=_zero_where(~has_video, clip, buffers),
            sync=_zero_where(~has_video, sync, buffers),
            text=buffers.take((count, widths.text_tokens, widths.text)),
            has_video=has_video,
            has_text=np.zeros(count, np.bool_),
        )

    @property
    def conditions(self) -> Conditions:
        """The conditions as tensors of the same memory; an empty caption counts as no text."""
        return Conditions(
            clip=torch.from_numpy(self.clip),
            sync=torch.from_numpy(self.sync),
            text=torch.from_numpy(self.text),
            has_clip=torch.tensor(self.has_video),
            has_sync=torch.tensor(self.has_video),
            has_text=torch.from_numpy(self.has_text),
        )


class Rows:
    """All rows of one split of a feature folder.

    Opening reads headers and indices, in time proportional to the number of files and rows, not of bytes.
    """

    def __init__(self, folder: Path, split: str, info: dict[str, Any]) -> None:
        self.layout = layout = ShardLayout.of(info)
        shards = [ShardFile.open(shard_path(folder, split, k), layout) for k in range(int(info["shards"][split]))]
        lengths = torch.tensor([len(shard) for shard in shards], dtype=torch.int64)
        found, expected = int(lengths.sum()), int(info["counts"][split])
        if found != expected:
            raise FeatureError(f"{folder}: {split} has {found} rows, features.json says {expected}; {AGAIN}")
        self.shards = shards
        self.texts = open_texts(folder, layout)
        self.widths = stored_widths(shards, self.texts)
        self.starts = torch.cumsum(lengths, 0) - lengths
        self.shard_index = torch.repeat_interleave(torch.arange(len(shards)), lengths)
        self.sound_index, self.video_index, self.text_index = (
            torch.cat([shard.indices[name] for shard in shards]) for name in INDICES
        )
        self.has_video = self.video_index >= 0
        self.has_text = torch.cat([file.tensor("filled") for file in self.texts])[self.text_index]
        self.buffers = Buffers()
        self._files = OpenFiles()
        self._media = Moved(folder)
        self._lines: dict[int, list[dict[str, Any]]] = {}
        self._captions: dict[int, list[str]] = {}

    def __len__(self) -> int:
        return len(self.text_index)

    def blank(self, has_video: np.ndarray) -> Gathered:
        """Memory for a batch of len(has_video) rows, with picture where `has_video`."""
        return Gathered.blank(self.layout, self.widths, has_video, self.buffers)

    def prefetch(self, rows: Tensor) -> None:
        """Announce all rows to the kernel, so that the disk reads them in parallel."""
        for file, row in self._sounds(rows):
            opened = self._files(file)
            opened.prefetch("mean", row)
            if self.layout.has_std:
                opened.prefetch("std", row)
        for file, row in self._pictures(rows[self.has_video[rows]]):
            opened = self._files(file)
            opened.prefetch("clip", row)
            opened.prefetch("sync", row)
        for file, row in self._words(rows):
            self._files(file).prefetch("text", row)

    def fill(self, rows: Tensor, places: np.ndarray, out: Gathered) -> None:
        """Read row rows[i] into position places[i] of a batch, for all i; `places` must increase.

        Raises FeatureError naming a file that is missing, truncated or holds NaN or infinity in one of the rows, or the
        clip whose row is damaged.
        """
        try:
            self._fill(rows, places, out)
        except DamagedRow as error:
            clip = self._clip_of(error, rows)
            raise FeatureError(f"{error.file.path}: {error.name} of clip {clip} is damaged; {RESTORE}") from error

    def _fill(self, rows: Tensor, places: np.ndarray, out: Gathered) -> None:
        self.prefetch(rows)
        self._fill_latents(rows, places, out.mean, out.std)
        has_video = self.has_video[rows]
        for (file, row), place in zip(self._pictures(rows[has_video]), places[has_video.numpy()].tolist(), strict=True):
            opened = self._files(file)
            widen(opened.read("clip", row), out.clip[place])
            widen(opened.read("sync", row), out.sync[place])
        for (file, row), place in zip(self._words(rows), places.tolist(), strict=True):
            opened = self._files(file)
            shared = len(opened.shared)
            widen(opened.shared, out.text[place, :shared])
            widen(opened.read("text", row), out.text[place, shared:])
        out.has_text[places] = self.has_text[rows].numpy()

    def record(self, row: int) -> Record:
        """The record of a row: file, start time, caption and events."""
        k = int(self.shard_index[row])
        line = _cached(self._lines, k, lambda: self.shards[k].lines())[row - int(self.starts[k])]
        file, within = divmod(int(self.text_index[row]), self.layout.captions_per_file)
        events, size = line.get("events_s"), line.get("bytes")
        try:
            return Record(
                id=str(line["id"]),
                item_id=str(line.get("item_id", line["id"])),
                path=str(self._media(Path(str(line["path"])), None if size is None else int(size))),
                start_s=float(line["start_s"]),
                duration_s=self.layout.duration_s,
                caption=_cached(self._captions, file, lambda: read_captions(self.texts[file]))[within],
                label=str(line.get("label", "")),
                events_s=None if events is None else tuple(float(event) for event in events),
                has_video=bool(self.has_video[row]),
                has_audio=True,
                group_id=str(line.get("group_id", "")),
                file_bytes=None if size is None else int(size),
            )
        except (KeyError, TypeError, ValueError) as error:
            path = self.shards[k].file.path
            raise FeatureError(f"{path}: record {row - int(self.starts[k])} is damaged ({error}); {AGAIN}") from error

    def verify(self) -> None:
        """Read everything once; raises FeatureError naming a file that is damaged or holds NaN or infinity."""
        for shard in self.shards:
            shard.file.intact()
            shard.lines()
            for name in ("mean", "std", "clip", "sync"):
                if name in shard.file.entries:
                    _check_finite(shard.file, name)
        for file in self.texts:
            file.intact()
            read_captions(file)
            _check_finite(file, "shared")
            _check_finite(file, "text")

    def _clip_of(self, damaged: DamagedRow, rows: Tensor) -> str:
        """Id of the first of `rows` that needs a damaged row; its number where the records are damaged too."""
        picks = {"mean": self._sounds, "std": self._sounds, "clip": self._pictures, "sync": self._pictures}
        found = picks.get(damaged.name, self._words)(rows)
        # The positions that are equal for all captions are needed by every row.
        at = (k for k, (file, row) in enumerate(found) if file is damaged.file and row == damaged.row)
        row = int(rows[next(at, 0)])
        try:
            return self.record(row).id
        except FeatureError:
            return f"number {row}"

    def _sounds(self, rows: Tensor) -> Picks:
        return self._in_shards(rows, self.sound_index)

    def _pictures(self, rows: Tensor) -> Picks:
        return self._in_shards(rows, self.video_index)

    def _in_shards(self, rows: Tensor, index: Tensor) -> Picks:
        files, within = self.shard_index[rows].tolist(), index[rows].tolist()
        return [(self.shards[k].file, row) for k, row in zip(files, within, strict=True)]

    def _words(self, rows: Tensor) -> Picks:
        places = (divmod(i, self.layout.captions_per_file) for i in self.text_index[rows].tolist())
        return [(self.texts[file], row) for file, row in places]

    def _fill_latents(self, rows: Tensor, places: np.ndarray, mean: np.ndarray, std: np.ndarray | None) -> None:
        """Rows of latents are short: they are collected as stored and converted together."""
        sounds = self._sounds(rows)
        for name, out in (("mean", mean), ("std", std)):
            if out is not None:
                stored = np.stack([self._files(file).read(name, row) for file, row in sounds])
                if len(stored) == len(out):
                    widen(stored, out)
                else:
                    made = np.empty(stored.shape, np.float32)
                    widen(stored, made)
                    out[places] = made


def _zero_where(absent: np.ndarray, shape: tuple[int, ...], buffers: Buffers) -> np.ndarray:
    if absent.all():
        return buffers.zeros(shape)
    made = buffers.take(shape)
    for place in np.flatnonzero(absent).tolist():
        made[place] = 0.0
    return made


class Records(Sequence[Record]):
    """A sequence of records, each made by `get(row)` when it is accessed."""

    def __init__(self, length: int, get: Callable[[int], Record]) -> None:
        self._length, self._get = length, get

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._get(row) for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._get(row)


def _cached(cache: dict[int, list[T]], key: int, make: Callable[[], list[T]]) -> list[T]:
    if key not in cache:
        if len(cache) >= CACHED_LISTS:
            cache.clear()
        cache[key] = make()
    return cache[key]


def _check_finite(file: TensorFile, name: str) -> None:
    if not bool(torch.isfinite(file.tensor(name)).all()):
        raise FeatureError(f"{file.path}: {name} holds NaN or infinity; {AGAIN}")
