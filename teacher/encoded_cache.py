"""Encoded pictures kept on disk: the same film under other words, seeds or networks is not decoded and encoded again.

Files <digest>.safetensors with `clip` and `sync` of one window, under a digest of what decides them: the content of the
film, the time, the encoders.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from teacher.files import file_sha256, replacing

Pictures = tuple[Tensor, Tensor]
"""Image features (frames, width) and synchronisation features (slots, width) of a window."""


@dataclass(frozen=True, kw_only=True)
class EncodedCache:
    """A folder of such files; delete it at any time."""

    folder: Path

    def get(
        self,
        video: Path,
        start_s: float,
        duration_s: float,
        encoders: Mapping[str, str],
        encode: Callable[[], Pictures],
    ) -> Pictures:
        """What was kept, or what `encode` gives, which is kept then.

        Raises:
            ValueError: a kept file that is damaged; it is named.
        """
        what = [file_sha256(video), round(start_s, 6), round(duration_s, 6), encoders["image"], encoders["sync"]]
        path = self.folder / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]}.safetensors"
        if path.is_file():
            try:
                kept = load_file(path)
                return kept["clip"], kept["sync"]
            except (SafetensorError, KeyError) as error:
                raise ValueError(f"{path} is damaged ({error}); delete it") from error
        clip, sync = encode()
        with replacing(path) as temporary:
            save_file({"clip": clip.cpu().contiguous(), "sync": sync.cpu().contiguous()}, temporary)
        return clip, sync
