"""A cache of encoded pictures on disk, so that a video is decoded and encoded once for all prompts, seeds and networks.

A file <digest>.safetensors holds `clip` and `sync` of one window; the digest is that of the video's content, the time
window and the names of the encoders.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from teacher.files import json_digest, parts_digest
from teacher.files.digests import tensor_parts
from teacher.files.safetensors import read_content, write_tensors

CONTENT = "content"
"""Entry of the metadata with the digest of the tensors."""
Pictures = tuple[Tensor, Tensor]
"""Image features (frames, width) and synchronisation features (slots, width) of a window."""


@dataclass(frozen=True, kw_only=True)
class EncodedCache:
    """Encoded pictures of videos, one file per window in a folder whose files may be deleted at any time."""

    folder: Path

    def get(
        self,
        video_sha256: str,
        start_s: float,
        duration_s: float,
        encoders: Mapping[str, str],
        encode: Callable[[], Pictures],
    ) -> Pictures:
        """The stored features of a window of the video with this digest; if there are none, calls `encode` and stores.

        A damaged file is replaced. Two processes may encode the same window at once: each writes the same content
        atomically.
        """
        what = [video_sha256, round(start_s, 6), round(duration_s, 6), encoders["image"], encoders["sync"]]
        path = self.folder / f"{json_digest(what)[:32]}.safetensors"
        stored = _read(path)
        if stored is not None:
            return stored
        clip, sync = encode()
        tensors = {"clip": clip.cpu().contiguous(), "sync": sync.cpu().contiguous()}
        write_tensors(path, tensors, {CONTENT: parts_digest(tensor_parts(tensors))})
        return clip, sync


def _read(path: Path) -> Pictures | None:
    """The features in a file; None if it is missing or damaged. Files of older versions have no digest."""
    try:
        stored, metadata = read_content(path, ("clip", "sync"))
    except (FileNotFoundError, ValueError):
        return None
    recorded = metadata.get(CONTENT)
    if recorded is not None and recorded != parts_digest(tensor_parts(stored)):
        return None
    return stored["clip"], stored["sync"]
