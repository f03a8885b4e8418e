"""The files of a feature folder: writing them, and opening them with their headers and indices checked.

features.json                       configuration, sources and counts; written last, so its presence means "complete"
plan.json                           configuration and digest of the items; written first, a rerun must match it
plan/{k:05d}.json                   windows found in a block of items by the first pass over all files
codec.safetensors                   the codec that encoded the latents
texts/{k:05d}.safetensors           unique captions and their features
shards/{split}-{k:05d}.safetensors  rows: indices into the sounds and pictures of the same file, and into all captions

    shard  sound_index, video_index (-1: no picture), text_index  int64 (rows,)
           mean (sounds, N, C) and std (sounds, N, C) bfloat16; a codec without std: mean alone, float32
           clip (pictures, Tc, image width), sync (pictures, Ts, sync width) bfloat16: 1024 and 768 wide in MMAudio
           records uint8: one JSON object a line;  moments float64 (2, 2, C): mean and sum of squared deviations over
           rows x frames of `mean`, of rows with picture and of rows without
    text   shared (p, text width), text (captions, 77 - p, text width) bfloat16; filled bool; captions uint8: a JSON
           list

Rows of one sound (several captions) refer to the same latents. The first p text positions are equal for all captions.

Every file contains checksums (teacher/files/tensor_file.py): for a large tensor "x" there is "x.crc", int64, with the
CRC-32 of each of its rows, or one of all records or captions; "digest" in the metadata is the SHA-256 of everything
else. digests.json has the SHA-256 of whole files. Folders of older versions have neither and can still be read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teacher.files import as_json, split_lines
from teacher.files import read_json as read_any_json
from teacher.files.errors import FeatureError
from teacher.files.tensor_file import AGAIN, TensorFile, write_checked
from teacher.lists.manifest import SkippedItem
from teacher.network.sequence import ConditionWidths, SequenceConfig, image_frames, sync_frames

FORMAT = "features"
FORMAT_VERSION = 2
SHARED_TOLERANCE = 2e-2
"""Largest difference between captions at a shared position: features have unit length, bfloat16 has 8 bits."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a feature set. `events_s` are seconds from the start of the window, None where unknown.

    `path` is absolute and current, if the file was moved together with the features. `group_id` is that of `Item`: rows
    of one source have the same; '' if unknown.
    """

    id: str
    item_id: str
    path: str
    start_s: float
    duration_s: float
    caption: str
    label: str
    events_s: tuple[float, ...] | None
    has_video: bool
    has_audio: bool
    group_id: str = ""
    file_bytes: int | None = None
    """Length of the file when it was extracted; None in folders of older versions."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The rows of one file, and the windows that were skipped. Features may be float32."""

    records: Sequence[Record]
    sound_index: Sequence[int]
    video_index: Sequence[int]
    text_index: Sequence[int]
    mean: Tensor
    std: Tensor | None
    clip: Tensor
    sync: Tensor
    skipped: Sequence[SkippedItem]
    padded: int
    codec: str = ""
    """Digest of the fitted codec that encoded the latents; '' if only features.json records it."""


def shard_path(folder: Path, split: str, number: int) -> Path:
    """The file of shard `number` of a split."""
    return folder / "shards" / f"{split}-{number:05d}.safetensors"


def text_path(folder: Path, number: int) -> Path:
    """The file of block `number` of the captions."""
    return folder / "texts" / f"{number:05d}.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; FeatureError when it is missing or damaged."""
    try:
        return read_any_json(path)
    except (OSError, ValueError) as error:
        raise FeatureError(f"{path}: cannot be read ({error})") from error


def read_info(folder: Path, versions: tuple[int, ...] = (FORMAT_VERSION,)) -> dict[str, Any]:
    """features.json of a finished folder; FeatureError if there is none, or if it is of another version."""
    if not (folder / "features.json").is_file():
        state = "its extraction is unfinished: run it again" if (folder / "plan.json").is_file() else "extract first"
        raise FeatureError(f"{folder}: no features.json; {state}")
    info = read_json(folder / "features.json")
    if info.get("format") != FORMAT or info.get("version") not in versions:
        found = info.get("version")
        raise FeatureError(
            f"{folder}: features of version {FORMAT_VERSION} are read, found {found!r}; extract again with --overwrite"
        )
    return info


def write_shard(path: Path, shard: Shard) -> tuple[int, str]:
    """Write a shard in one file; latents with std are rounded to bfloat16, those without stay float32."""
    tensors = {
        "sound_index": torch.tensor(shard.sound_index, dtype=torch.int64),
        "video_index": torch.tensor(shard.video_index, dtype=torch.int64),
        "text_index": torch.tensor(shard.text_index, dtype=torch.int64),
        "clip": shard.clip.bfloat16(),
        "sync": shard.sync.bfloat16(),
        "records": _bytes("".join(_line(record) + "\n" for record in shard.records)),
    }
    if shard.std is None:
        tensors["mean"] = shard.mean.float()
    else:
        tensors |= {"mean": shard.mean.bfloat16(), "std": shard.std.bfloat16(), "moments": _moments(shard)}
    codec = {"codec": shard.codec} if shard.codec else {}
    return write_checked(path, tensors, {"skipped": list(shard.skipped), "padded": shard.padded, **codec})


def write_texts(path: Path, captions: Sequence[str], features: Tensor, *, shared_positions: int) -> tuple[int, str]:
    """Write text features (captions, positions, width) as bfloat16, the leading `shared_positions` once.

    Raises FeatureError when those positions differ between captions.
    """
    shared = features[0, :shared_positions]
    if shared_positions and float((features[:, :shared_positions] - shared).abs().max()) > SHARED_TOLERANCE:
        raise FeatureError(f"the first {shared_positions} text positions were to be equal for all captions, but differ")
    tensors = {
        "shared": shared.bfloat16(),
        "text": features[:, shared_positions:].bfloat16(),
        "filled": torch.tensor([bool(caption.strip()) for caption in captions]),
        "captions": _bytes(as_json(list(captions))),
    }
    return write_checked(path, tensors, {})


def _moments(shard: Shard) -> Tensor:
    """Mean and sum of squared deviations per channel, float64 (2, 2, C): rows with picture, rows without."""
    rows, video = torch.tensor(shard.sound_index, dtype=torch.int64), torch.tensor(shard.video_index) >= 0
    made = []
    for chosen in (rows[video], rows[~video]):
        values = shard.mean[chosen].double().flatten(0, 1)
        mean = values.mean(0) if len(values) else torch.zeros(shard.mean.shape[2], dtype=torch.float64)
        made.append(torch.stack((mean, (values - mean).square().sum(0))))
    return torch.stack(made)


def _bytes(text: str) -> Tensor:
    data = bytearray(text.encode("utf-8"))
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)


def _line(record: Record) -> str:
    """A record as a line of JSON, without the entries that follow from the indices and features.json."""
    row: dict[str, Any] = {"id": record.id, "path": record.path, "start_s": record.start_s}
    if record.item_id != record.id:
        row["item_id"] = record.item_id
    if record.label:
        row["label"] = record.label
    if record.events_s is not None:
        row["events_s"] = record.events_s
    if record.group_id:
        row["group_id"] = record.group_id
    if record.file_bytes is not None:
        row["bytes"] = record.file_bytes
    return as_json(row, separators=(",", ":"))


INDICES = ("sound_index", "video_index", "text_index")


@dataclass(frozen=True, kw_only=True)
class ShardLayout:
    """Shapes that every shard of a folder must have, from its features.json; condition widths come from the files."""

    duration_s: float
    latent_frames: int
    latent_channels: int
    has_std: bool
    captions: int
    captions_per_file: int

    @classmethod
    def of(cls, info: dict[str, Any]) -> "ShardLayout":
        """The layout that the content of features.json describes."""
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
    """One opened shard with its header and indices, which are checked; the other tensors stay on disk."""

    file: TensorFile
    indices: dict[str, Tensor]

    @classmethod
    def open(cls, path: Path, layout: ShardLayout) -> "ShardFile":
        """Read header and indices; raises FeatureError naming the file for wrong counts, shapes, dtypes or indices."""
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
        pictures = file.expect("clip", torch.bfloat16, (None, image_frames(layout.duration_s), None))
        file.expect("sync", torch.bfloat16, (pictures, sync_frames(layout.duration_s), None))
        file.expect("records", torch.uint8, (None,))
        indices = {name: file.tensor(name) for name in INDICES}
        for name, least, count in zip(INDICES, (0, -1, 0), (sounds, pictures, layout.captions), strict=True):
            if rows and not (int(indices[name].min()) >= least and int(indices[name].max()) < count):
                raise FeatureError(f"{path}: {name} reaches outside {least}..{count - 1}; {AGAIN}")
        return cls(file.without_head(), indices)

    def __len__(self) -> int:
        return len(self.indices["text_index"])

    @property
    def skipped(self) -> list[SkippedItem]:
        """Windows that were skipped while the shard was made, with reasons."""
        return [(str(id_), str(reason)) for id_, reason in self.file.metadata.get("skipped", [])]

    @property
    def padded(self) -> int:
        """Number of rows whose end is padded with silence or a repeated frame."""
        return int(self.file.metadata.get("padded", 0))

    def lines(self) -> list[dict[str, Any]]:
        """The records as stored; FeatureError when they do not fit the rows."""
        try:
            text = self.file.tensor("records").numpy().tobytes().decode("utf-8")
            found = [json.loads(line) for line in split_lines(text)]
        except FeatureError:
            raise
        except (ValueError, RecursionError) as error:
            raise FeatureError(f"{self.file.path}: its records are damaged ({error}); {AGAIN}") from error
        if len(found) != len(self):
            raise FeatureError(f"{self.file.path}: {len(found)} records for {len(self)} rows; {AGAIN}")
        return found


def open_texts(folder: Path, layout: ShardLayout) -> list[TensorFile]:
    """Headers of all text files; FeatureError unless they have as many captions as features.json records."""
    files, count = [], 0
    for k in range(-(-layout.captions // layout.captions_per_file)):
        file = TensorFile.open(text_path(folder, k)).intact()
        own = min(layout.captions_per_file, layout.captions - count)
        file.expect("shared", torch.bfloat16, (None, None))
        file.expect("text", torch.bfloat16, (own, None, None))
        file.expect("filled", torch.bool, (own,))
        file.expect("captions", torch.uint8, (None,))
        files.append(file.without_head())
        count += own
    return files


def stored_widths(shards: Sequence[ShardFile], texts: Sequence[TensorFile]) -> ConditionWidths:
    """Widths of the condition features in opened files; FeatureError where two of them differ."""
    pictures = {(shard.file.entries["clip"].shape[2], shard.file.entries["sync"].shape[2]) for shard in shards}
    words = set[tuple[int, int]]()
    for file in texts:
        shared, rest = file.entries["shared"].shape, file.entries["text"].shape
        words |= {(shared[0] + rest[1], shared[1]), (shared[0] + rest[1], rest[2])}
    if len(pictures) != 1 or len(words) != 1:
        raise FeatureError(f"{texts[0].path.parent.parent}: its files hold features of different widths; {AGAIN}")
    (image, sync), (tokens, text) = pictures.pop(), words.pop()
    return ConditionWidths(image=image, sync=sync, text=text, text_tokens=tokens)


def folder_widths(folder: Path) -> ConditionWidths:
    """Widths of the condition features of a finished folder, from the headers of two of its files."""
    info = read_info(folder)
    layout = ShardLayout.of(info)
    split = next(name for name, count in info["shards"].items() if count)
    return stored_widths([ShardFile.open(shard_path(folder, split, 0), layout)], open_texts(folder, layout)[:1])


def read_captions(file: TensorFile) -> list[str]:
    """The captions of an opened text file, in the order of its features."""
    try:
        found = json.loads(file.tensor("captions").numpy().tobytes())
        if not isinstance(found, list) or len(found) != len(file.tensor("filled")):
            raise ValueError("not one caption for each feature")
    except FeatureError:
        raise
    except (ValueError, RecursionError) as error:
        raise FeatureError(f"{file.path}: its captions are damaged ({error}); {AGAIN}") from error
    return [str(caption) for caption in found]
