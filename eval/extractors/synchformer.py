"""The synchronisation model behind DeSync: features of picture and sound, and logits of the offset between the two.

Synchformer (arXiv 2401.16423) as `teacher.encoders` builds it. Pictures are 25 frames a second of 224 x 224 pixels in
segments of 16 frames every 8, sound is 16 kHz in segments of 10 240 samples every 5120: 24 of each in 8 s. The offset
head takes 14 segments (4.8 s); it is given two windows of a clip, its first 14 segments and its last 14.
`eval/metrics/desync.py` turns the logits into seconds.

Unlike av-benchmark this refuses a clip whose sound and picture have unequal numbers of segments: their last windows
would lie at different times, and the difference would be scored as desynchronisation. The mean of the wave is left in,
as there.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from eval.extractors.base import LoadedFile, OfficialFile, check_waves, exact_float32, load_official
from eval.metrics.desync import first_and_last
from teacher.encoders.base import Frames, checked_frames
from teacher.encoders.synchformer import SYNC_REQUEST, VISUAL, cut_segments
from teacher.encoders.synchformer_sync import SAMPLE_RATE, SEGMENT_SAMPLES, Synchformer, SynchformerConfig
from teacher.files import tensors_digest
from teacher.media import FrameRequest
from teacher.network.sequence import FEATURES_PER_SEGMENT
from teacher.weights.cards import card

CLIPS_AT_ONCE = 8
"""Clips whose sound, or whose windows, go through one forward pass; it bounds the memory, no result depends on it."""


def official() -> OfficialFile:
    """The published file, which holds the generator's visual encoder as well."""
    known = card("synchformer")
    return OfficialFile(file=known.file, url=known.url, licence=known.licence)


def as_segments(features: Float[Tensor, "*clips slots width"]) -> Float[Tensor, "*clips segments 8 width"]:
    """Features in a row, as the feature store has them, by segment. Raises ValueError unless 8 divides their number."""
    if features.ndim < 2 or features.shape[-2] % FEATURES_PER_SEGMENT:
        raise ValueError(f"features must be (..., 8 segments, width), got {tuple(features.shape)}")
    return features.unflatten(-2, (-1, FEATURES_PER_SEGMENT))


@dataclass(frozen=True, kw_only=True, eq=False)
class DesyncExtractor:
    """Frames and sounds of clips -> logits of 21 offsets for the first and the last 4.8 s. Float32 on the processor."""

    network: Synchformer
    loaded: LoadedFile
    digest: str
    """Digest of all tensors, which is the same for the official file and for one that mf-convert made of it."""
    visual_name: str
    """The name that stored synchronisation features of the same visual encoder carry."""
    request: FrameRequest = SYNC_REQUEST
    """Frames that `visual_features` takes."""

    @classmethod
    def load(cls, path: Path, *, device: torch.device | str = "cpu", config: SynchformerConfig | None = None) -> Self:
        """The complete model by path, strictly; config None means the published sizes.

        Raises WeightsError in one line naming the file and what does not fit, as for a file of the visual half alone.
        """
        with torch.device("meta"):
            network = Synchformer(config or SynchformerConfig())
        loaded = load_official(network, path, official())
        tensors = network.state_dict()
        visual = {name: tensor for name, tensor in tensors.items() if name.startswith(VISUAL)}
        return cls(
            network=network.to(device),
            loaded=loaded,
            digest=tensors_digest(tensors),
            visual_name=f"synchformer-visual-1-{tensors_digest(visual)}",
        )

    @property
    def name(self) -> str:
        return f"synchformer-v1@{SAMPLE_RATE}:{self.digest}"

    @property
    def sample_rate(self) -> int:
        """Of the waves, in Hz."""
        return SAMPLE_RATE

    @torch.no_grad()
    def visual_features(self, frames: Frames) -> Float[Tensor, "segments 8 width"]:
        """(T, 3, 224, 224) uint8 of one clip -> features of (T - 16) // 8 + 1 segments.

        Raises:
            ValueError: other pixels than `request` asks for, or T < 16.
        """
        segments = cut_segments(checked_frames(frames, self.request)[None].to(self._device))
        with exact_float32():
            return self.network.visual_features(segments)[0].float().cpu()

    @torch.no_grad()
    def audio_features(self, waves: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips segments 6 width"]:
        """Waves at 16 kHz -> features of (samples - 10 240) // 5120 + 1 segments; what is left over is not used.

        Raises:
            ValueError: not (clips, samples), shorter than 0.64 s, or not finite.
        """
        check_waves(waves, model="Synchformer", sample_rate=SAMPLE_RATE, shortest=SEGMENT_SAMPLES)
        with exact_float32():
            parts = [
                self.network.audio_features(some.to(self._device).float()).cpu() for some in waves.split(CLIPS_AT_ONCE)
            ]
        return torch.cat(parts)

    @torch.no_grad()
    def logits(
        self, visual: Float[Tensor, "clips segments 8 width"], audio: Float[Tensor, "clips segments 6 width"]
    ) -> Float[Tensor, "clips 2 21"]:
        """Logits of the offset classes for segments [0, 14) and [n - 14, n) of clips of n segments.

        Raises:
            ValueError: unequal clips or segments of picture and sound, other features, or fewer than 14 segments.
        """
        for name, features in (("visual", visual), ("audio", audio)):
            if features.ndim != 4 or len(features) == 0:
                raise ValueError(f"{name} must be (clips, segments, slots, width), got {tuple(features.shape)}")
        if visual.shape[:2] != audio.shape[:2]:
            raise ValueError(
                "visual and audio must be of the same clips and equally many segments, got "
                f"{visual.shape[0]} x {visual.shape[1]} and {audio.shape[0]} x {audio.shape[1]}; cut both to one length"
            )
        windows = first_and_last(visual.shape[1])
        with exact_float32():
            parts = [
                torch.stack([self._window_logits(v[:, window], a[:, window]) for window in windows], dim=1)
                for v, a in zip(visual.split(CLIPS_AT_ONCE), audio.split(CLIPS_AT_ONCE), strict=True)
            ]
        return torch.cat(parts)

    def _window_logits(self, visual: Tensor, audio: Tensor) -> Tensor:
        device = self._device
        return self.network.logits(visual.to(device).float(), audio.to(device).float()).cpu()

    @property
    def _device(self) -> torch.device:
        return self.network.vproj.weight.device
