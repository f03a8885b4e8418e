"""Extracted features: rows by index, batches by (seed, step). Opening a folder reads headers, not features."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from teacher.audio.codec import AudioCodec
from teacher.audio.registry import open_codec
from teacher.features import store
from teacher.features.rows import Gathered, Records, Rows
from teacher.features.store import FeatureError, Record
from teacher.files import check_digests, read_digests
from teacher.files.tensor_file import RESTORE
from teacher.network.batch import Batch, BatchSlice
from teacher.network.sequence import SequenceConfig

__all__ = ["Examples", "FeatureError", "FeatureSet", "Record", "batch_indices", "load_codec"]

COMPARED_AT_ONCE = 1 << 30
"""Bytes of a split up to which whole files are compared with digests.json when it is opened; about a second."""
CODEC_VERSIONS = (1, 2)
"""Versions of features.json whose codec can be read; runs keep the file of the features they were trained on."""


class Examples(Protocol):
    """What training needs of a set of examples: `FeatureSet` and `JointSet`."""

    @property
    def info(self) -> dict[str, Any]: ...

    @property
    def records(self) -> Sequence[Record]: ...

    @property
    def latent_mean(self) -> Tensor: ...

    @property
    def latent_std(self) -> Tensor: ...

    @property
    def duration_s(self) -> float: ...

    @property
    def sequence(self) -> SequenceConfig: ...

    def __len__(self) -> int: ...

    def batch(
        self,
        indices: Sequence[int] | Tensor,
        *,
        generator: torch.Generator | None = None,
        batch_slice: BatchSlice | None = None,
    ) -> Batch: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSet:
    """One split of a feature folder, whose rows are read when asked for. Open it with `open`."""

    folder: Path
    info: dict[str, Any]
    """features.json: duration_s, digest, counts, configuration."""
    rows: Rows
    latent_mean: Float[Tensor, "channels"]
    """Latents are normalised by these: (z - latent_mean) / latent_std."""
    latent_std: Float[Tensor, "channels"]

    @classmethod
    def open(cls, folder: Path, split: str, *, statistics: tuple[Tensor, Tensor] | None = None) -> "FeatureSet":
        """Open a split; `statistics` (mean, std), each (C,), stand in for the folder's own.

        Raises FeatureError in one line when the folder is unfinished, damaged, of an older version or lacks the split.
        Files that are small together are compared as a whole with digests.json at once, rows of others when they are
        read.
        """
        folder = Path(folder)
        info = _read_info(folder)
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
        """One per row, decoded when asked for."""
        return Records(len(self.rows), self.rows.record)

    @property
    def duration_s(self) -> float:
        return float(self.info["duration_s"])

    @property
    def sequence(self) -> SequenceConfig:
        """Rates of the latents."""
        return SequenceConfig(**self.info["sequence"])

    @property
    def has_video(self) -> Tensor:
        """Which rows have a picture, (rows,) bool."""
        return self.rows.has_video

    def gone(self, record: Record, reason: str) -> str:
        """One line for people: the file of a record cannot be read, and what to do."""
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
        """Rows `indices` in that order. With a generator, and where the codec has a std, z = mean + std e; else mean.

        `batch_slice` says which rows of a larger batch they are, for which e is drawn.

        Raises FeatureError when a latent is not finite; `verify` looks at all features.
        """
        rows = as_rows(indices, len(self))
        gathered = Gathered.blank(self.rows.layout, self.has_video[rows].numpy(), self.rows.buffers)
        self.rows.fill(rows, np.arange(len(rows)), gathered)
        return finish_batch(gathered, rows, self, generator, batch_slice)

    def verify(self) -> None:
        """Read all features once; FeatureError naming the file that holds NaN or infinity."""
        self.rows.verify()


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


def load_codec(folder: Path, *, weights_dir: Path | None = None, device: str = "cpu") -> AudioCodec:
    """The codec that made the latents of a feature folder, checked against the digest in features.json.

    `weights_dir` is where the files of a published codec lie, if not where they lay during extraction.
    """
    folder = Path(folder)
    info = _read_info(folder, CODEC_VERSIONS)
    codec = open_codec(folder / "codec.safetensors", weights_dir=weights_dir, device=device)
    if codec.digest != info["codec"]["digest"]:
        raise FeatureError(f"{folder}: codec.safetensors is not the codec of these latents; extract again")
    return codec


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
    """Kept from step to step: shuffling two million rows takes longer than reading a batch of them."""
    return np.random.default_rng([seed, epoch]).permutation(num_items)


def _check_small(folder: Path, split: str, info: dict[str, Any]) -> None:
    """FeatureError where a file of a split whose files are at most COMPARED_AT_ONCE in all is not as recorded."""
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


def _read_info(folder: Path, versions: tuple[int, ...] = (store.FORMAT_VERSION,)) -> dict[str, Any]:
    if not (folder / "features.json").is_file():
        state = "its extraction is unfinished: run it again" if (folder / "plan.json").is_file() else "extract first"
        raise FeatureError(f"{folder}: no features.json; {state}")
    info = store.read_json(folder / "features.json")
    if info.get("format") != store.FORMAT or info.get("version") not in versions:
        found = info.get("version")
        raise FeatureError(
            f"{folder}: features of version {store.FORMAT_VERSION} are read, found {found!r}; extract again "
            "with --overwrite"
        )
    return info
