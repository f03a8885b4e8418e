"""Extracted features in memory: rows by index, batches by (seed, step)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from teacher.audio.codec import AudioCodec
from teacher.audio.embedded_codec import EmbeddedCodec
from teacher.conditions import Conditions
from teacher.data import store
from teacher.data.store import FeatureError, Record, shard_path
from teacher.sequence import IMAGE_DIM, SYNC_DIM, TEXT_DIM, TEXT_TOKENS, SequenceConfig, image_frames, sync_frames

__all__ = ["Batch", "FeatureError", "FeatureSet", "Record", "batch_indices", "load_codec"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Normalised latents (B, N, C), their conditions, both float32, and the rows they came from (B,)."""

    latents: Float[Tensor, "batch frames channels"]
    conditions: Conditions
    indices: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(
            latents=self.latents.to(device), conditions=self.conditions.to(device), indices=self.indices.to(device)
        )


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """One split of a feature folder, held in memory (a 2 s clip takes about 100 kB). Open it with `open`."""

    info: dict[str, Any]
    """features.json: duration_s, digest, counts, configuration."""
    records: list[Record]
    tensors: dict[str, Tensor]
    texts: Tensor

    @classmethod
    def open(cls, folder: Path, split: str) -> "FeatureSet":
        """Load a split. Raises FeatureError in one line when the folder is unfinished, damaged or lacks the split."""
        folder = Path(folder)
        info = _read_info(folder)
        if not info["counts"].get(split):
            found = ", ".join(f"{name} {count}" for name, count in info["counts"].items())
            raise FeatureError(f"{folder}: no examples in split {split!r} (found {found})")
        shards = [store.read_shard(shard_path(folder, split, k)) for k in range(info["shards"][split])]
        tensors = {name: torch.cat([shard.tensors[name] for shard in shards]) for name in store.SHARD_TENSORS}
        records = [record for shard in shards for record in shard.records]
        captions, texts = store.read_texts(folder / "texts.safetensors")
        features = cls(info=info, records=records, tensors=tensors, texts=texts)
        features._check(folder, split, captions)
        return features

    def __len__(self) -> int:
        return len(self.records)

    @property
    def duration_s(self) -> float:
        return float(self.info["duration_s"])

    @property
    def sequence(self) -> SequenceConfig:
        """Rates of the latents."""
        return SequenceConfig(**self.info["sequence"])

    def batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Rows `indices` in that order, float32. An empty caption counts as no text."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        if rows.ndim != 1 or len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= len(self):
            raise IndexError(f"indices must be a non-empty list within 0..{len(self) - 1}, got {rows.tolist()[:8]}")
        has_video = self.tensors["has_video"][rows]
        conditions = Conditions(
            clip=self.tensors["clip"][rows].float(),
            sync=self.tensors["sync"][rows].float(),
            text=self.texts[self.tensors["text_index"][rows]].float(),
            has_clip=has_video,
            has_sync=has_video.clone(),
            has_text=torch.tensor([bool(self.records[i].caption.strip()) for i in rows.tolist()]),
        )
        return Batch(latents=self.tensors["latents"][rows], conditions=conditions, indices=rows)

    def _check(self, folder: Path, split: str, captions: list[str]) -> None:
        """Row counts, shapes, finite latents and text indices against features.json."""
        count, duration_s = self.info["counts"][split], self.duration_s
        frames = self.sequence.latent_frames(duration_s)
        expected: dict[str, tuple[int, ...]] = {
            "latents": (count, frames, self.info["latent_channels"]),
            "clip": (count, image_frames(duration_s), IMAGE_DIM),
            "sync": (count, sync_frames(duration_s), SYNC_DIM),
            "text_index": (count,),
            "has_video": (count,),
        }
        for name, shape in expected.items():
            if tuple(self.tensors[name].shape) != shape:
                found = tuple(self.tensors[name].shape)
                raise FeatureError(f"{folder}: {name} of {split} has shape {found}, features.json says {shape}")
        for name in ("latents", "clip", "sync"):
            if not bool(torch.isfinite(self.tensors[name]).all()):
                raise FeatureError(f"{folder}: {name} of {split} holds NaN or infinity; extract again")
        if tuple(self.texts.shape[1:]) != (TEXT_TOKENS, TEXT_DIM):
            raise FeatureError(f"{folder}: text features have shape {tuple(self.texts.shape)}; extract again")
        index = self.tensors["text_index"]
        fits = bool(((index >= 0) & (index < len(captions))).all())
        if not fits or any(captions[i] != r.caption for i, r in zip(index.tolist(), self.records, strict=True)):
            raise FeatureError(f"{folder}: text features do not belong to the records of {split}; extract again")


def load_codec(folder: Path) -> AudioCodec:
    """The codec that made the latents of a feature folder, checked against the digest in features.json."""
    folder = Path(folder)
    info = _read_info(folder)
    codec = EmbeddedCodec.load(folder / "codec.safetensors")
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
        order = np.random.default_rng([seed, epoch]).permutation(num_items)
        rows.append(order[max(0, begin - epoch * num_items) : end - epoch * num_items])
    return torch.from_numpy(np.concatenate(rows))


def _read_info(folder: Path) -> dict[str, Any]:
    if not (folder / "features.json").is_file():
        state = "its extraction is unfinished: run it again" if (folder / "plan.json").is_file() else "extract first"
        raise FeatureError(f"{folder}: no features.json; {state}")
    info = store.read_json(folder / "features.json")
    if info.get("format") != store.FORMAT or info.get("version") != store.FORMAT_VERSION:
        found = info.get("version")
        raise FeatureError(f"{folder}: expected version {store.FORMAT_VERSION}, found {found!r}; extract again")
    return info
