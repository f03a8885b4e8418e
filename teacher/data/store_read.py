"""Opening the shards and texts of a feature folder (teacher/data/store.py): headers and indices, checked."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teacher.data.store import Skipped, text_path
from teacher.data.tensor_file import AGAIN, FeatureError, TensorFile
from teacher.files import split_lines
from teacher.sequence import IMAGE_DIM, SYNC_DIM, TEXT_DIM, TEXT_TOKENS, SequenceConfig, image_frames, sync_frames

INDICES = ("sound_index", "video_index", "text_index")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What every shard of a folder must look like, from features.json."""

    duration_s: float
    latent_frames: int
    latent_channels: int
    has_std: bool
    captions: int
    captions_per_file: int

    @classmethod
    def of(cls, info: dict[str, Any]) -> "Layout":
        """From the content of features.json."""
        duration_s = float(info["duration_s"])
        return cls(
            duration_s=duration_s,
            latent_frames=SequenceConfig(**info["sequence"]).latent_frames(duration_s),
            latent_channels=int(info["latent_channels"]),
            has_std=bool(info["codec"]["has_std"]),
            captions=int(info["texts"]["count"]),
            captions_per_file=int(info["texts"]["per_file"]),
        )


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One opened shard: header and indices, checked; the rest stays on disk."""

    file: TensorFile
    indices: dict[str, Tensor]

    @classmethod
    def open(cls, path: Path, layout: Layout) -> "ShardFile":
        """Read header and indices. FeatureError naming the file for wrong counts, shapes, dtypes or indices."""
        file = TensorFile.open(path).intact()
        rows = file.expect("text_index", torch.int64, (None,))
        for name in INDICES:
            file.expect(name, torch.int64, (rows,))
        frames, channels = layout.latent_frames, layout.latent_channels
        latent_dtype = torch.bfloat16 if layout.has_std else torch.float32
        sounds = file.expect("mean", latent_dtype, (None, frames, channels))
        if layout.has_std:
            file.expect("std", latent_dtype, (sounds, frames, channels))
            file.expect("moments", torch.float64, (2, 2, channels))
        pictures = file.expect("clip", torch.bfloat16, (None, image_frames(layout.duration_s), IMAGE_DIM))
        file.expect("sync", torch.bfloat16, (pictures, sync_frames(layout.duration_s), SYNC_DIM))
        file.expect("records", torch.uint8, (None,))
        indices = {name: file.small(name) for name in INDICES}
        for name, least, count in zip(INDICES, (0, -1, 0), (sounds, pictures, layout.captions), strict=True):
            if rows and not (int(indices[name].min()) >= least and int(indices[name].max()) < count):
                raise FeatureError(f"{path}: {name} reaches outside {least}..{count - 1}; {AGAIN}")
        return cls(file.without_head(), indices)

    def __len__(self) -> int:
        return len(self.indices["text_index"])

    @property
    def skipped(self) -> list[Skipped]:
        """Windows left out while the shard was made."""
        return [(str(id_), str(reason)) for id_, reason in self.file.metadata.get("skipped", [])]

    @property
    def padded(self) -> int:
        """Rows whose end is silence or a held frame."""
        return int(self.file.metadata.get("padded", 0))

    def lines(self) -> list[dict[str, Any]]:
        """The records as stored; FeatureError when they do not fit the rows."""
        try:
            text = self.file.small("records").numpy().tobytes().decode("utf-8")
            found = [json.loads(line) for line in split_lines(text)]
        except FeatureError:
            raise
        except (ValueError, RecursionError) as error:
            raise FeatureError(f"{self.file.path}: its records are damaged ({error}); {AGAIN}") from error
        if len(found) != len(self):
            raise FeatureError(f"{self.file.path}: {len(found)} records for {len(self)} rows; {AGAIN}")
        return found


def open_texts(folder: Path, layout: Layout) -> list[TensorFile]:
    """Headers of all text files; FeatureError when they hold another number of captions than features.json says."""
    files, count = [], 0
    for k in range(-(-layout.captions // layout.captions_per_file)):
        file = TensorFile.open(text_path(folder, k)).intact()
        own = min(layout.captions_per_file, layout.captions - count)
        shared = file.expect("shared", torch.bfloat16, (None, TEXT_DIM))
        file.expect("text", torch.bfloat16, (own, TEXT_TOKENS - shared, TEXT_DIM))
        file.expect("filled", torch.bool, (own,))
        file.expect("captions", torch.uint8, (None,))
        files.append(file.without_head())
        count += own
    return files


def read_captions(file: TensorFile) -> list[str]:
    """The captions of a text file."""
    try:
        found = json.loads(file.small("captions").numpy().tobytes())
        if not isinstance(found, list) or len(found) != len(file.small("filled")):
            raise ValueError("not one caption for each feature")
    except FeatureError:
        raise
    except (ValueError, RecursionError) as error:
        raise FeatureError(f"{file.path}: its captions are damaged ({error}); {AGAIN}") from error
    return [str(caption) for caption in found]
