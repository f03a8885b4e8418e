"""ImageBind-huge (arXiv 2305.05665): picture and sound in one space, for the ImageBind score of video-to-audio papers.

A clip's embedding is the mean of the embeddings, each of length 1, of its three pieces of sound or of its nine clips
of picture; `eval/metrics/alignment.py` takes the cosine of the two. The published sound embeddings are multiplied by 20
before they are averaged, which no cosine sees; here they are not. What is heard and seen of a clip, and how that
differs from av-benchmark, is told in `imagebind_front_end.py`.

av-benchmark hears the whole sound file, not the scored duration: with `ClipAudio(sample_rate=16_000)` so does this.

**The weights are CC BY-NC-SA 4.0**: not for commercial use, and what is made of them is shared alike. They are never
downloaded from here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from eval.extractors.base import Embeddings, check_waves, exact_float32
from eval.extractors.imagebind_front_end import SAMPLE_RATE, SHORTEST, checked_picture, picture_clips, sound_pieces
from eval.extractors.imagebind_trunk import ImageBindConfig, ImageBindNetwork
from eval.extractors.official import LoadedFile, OfficialFile, load_official
from teacher.encoders.base import Frames

IMAGEBIND_HUGE = OfficialFile(
    file="imagebind_huge.pth",
    url="https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
    licence="CC BY-NC-SA 4.0 (not for commercial use)",
    sha256="d6f6c22bedcc90708448d5d2fbb7b2db9c73f505dc89bd0b2e09b23af1b62157",
)
UNUSED = tuple(
    f"modality_{part}.{sense}.*"
    for part in ("preprocessors", "trunks", "heads", "postprocessors")
    for sense in ("text", "depth", "thermal", "imu")
)
"""The towers of the other senses: 742 tensors."""
CLIPS_AT_ONCE = 8
"""Pieces of sound times three, or clips of picture, per forward pass; it bounds the memory, no result depends on it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageBind:
    """ImageBind as an embedding model of sounds, one row of 1024 per clip at 16 kHz; and of pictures."""

    network: ImageBindNetwork
    loaded: LoadedFile

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu", config: ImageBindConfig | None = None) -> Self:
        """The published file by its path, strictly but for the towers that are not used; None means its sizes.

        Raises WeightsError in one line naming the file and what does not fit.
        """
        with torch.device("meta"):
            network = ImageBindNetwork(config or ImageBindConfig())
        loaded = load_official(network, path, IMAGEBIND_HUGE, unused=UNUSED)
        return cls(network=network.to(device), loaded=loaded)

    @property
    def name(self) -> str:
        return f"imagebind-huge-v1@{SAMPLE_RATE}:{self.loaded.digest}"

    @property
    def sample_rate(self) -> int:
        """Of the waves, in Hz."""
        return SAMPLE_RATE

    @property
    def dimensions(self) -> int:
        return self.network.config.dimensions

    @torch.no_grad()
    def embed(self, waves: Float[Tensor, "clips samples"]) -> Embeddings:
        """The mean of the three pieces' unit vectors, one row per clip; its own length is at most 1.

        Raises:
            ValueError: not (clips, samples), shorter than 25 ms, or not finite.
        """
        check_waves(waves, model="ImageBind", sample_rate=SAMPLE_RATE, shortest=SHORTEST)
        parts = []
        for some in waves.split(CLIPS_AT_ONCE):
            with exact_float32():
                pieces = sound_pieces(some.to(self._device).float())
                rows = self.network.hear(pieces.flatten(0, 1)).unflatten(0, pieces.shape[:2]).mean(dim=1)
            parts.append(Embeddings(rows=rows.cpu(), counts=(1,) * len(some)))
        return Embeddings.join(parts)

    def __call__(self, waves: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips 1024"]:
        """Embeddings alone."""
        return self.embed(waves).rows

    @torch.no_grad()
    def see(self, frames: Frames) -> Float[Tensor, "1024"]:
        """uint8 frames (T, 3, H, W) of one clip, 2 s apart, short side 224, as `imagebind_frames` reads them.

        The mean of the unit vectors of 3 (T - 1) clips, float32 on the processor.

        Raises:
            ValueError: other pixels, or fewer than two frames.
        """
        clips = picture_clips(checked_picture(frames).to(self._device))
        with exact_float32():
            return torch.cat([self.network.see(some) for some in clips.split(CLIPS_AT_ONCE)]).mean(dim=0).cpu()

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device
