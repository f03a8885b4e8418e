"""LAION-CLAP (arXiv 2211.06687): sound and caption as unit vectors of 512, whose cosine is the CLAP score.

`music_speech_audioset_epoch_15_esc_89.98.pt`: HTSAT-base without fusion and RoBERTa-base, each followed by two linear
layers. Module names are those of the published state dict, behind "module.".

Differences from av-benchmark:
- Of a clip longer than 10 s the middle is heard, not a place drawn from an unseeded generator (see
  `htsat_front_end.py`). Shorter clips are treated alike: whole copies, then zeros.
- Loading is strict; the position numbers that old transformers kept in the file are the only names left out.
- Channels, the mean of the wave and the sample rate are the business of `eval/extractors/clip_audio.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.base import Embeddings
from eval.extractors.clap_rows import caption_rows, sound_rows
from eval.extractors.clap_text import ROBERTA_BASE, Roberta, TextConfig
from eval.extractors.clap_tokens import CaptionTokenizer
from eval.extractors.htsat import LAION, Htsat, HtsatConfig, check_constants
from eval.extractors.htsat_front_end import LAION_SAMPLES, laion_length
from eval.extractors.official import LoadedFile, OfficialFile, load_official, read_official
from teacher.files.errors import WeightsError

CLAP_LAION = OfficialFile(
    file="music_speech_audioset_epoch_15_esc_89.98.pt",
    url="https://huggingface.co/lukewys/laion_clap/resolve/main/music_speech_audioset_epoch_15_esc_89.98.pt",
    licence="CC0-1.0 (of the code)",
)
UNUSED = ("text_branch.embeddings.position_ids",)
"""0, 1, 2, ..., kept in the file by transformers before 4.31."""


@dataclass(frozen=True, kw_only=True)
class ClapLaionConfig:
    """Sizes; the defaults are the published ones, 200 064 474 numbers in 504 tensors."""

    audio: HtsatConfig = LAION
    text: TextConfig = ROBERTA_BASE
    joint: int = 512
    """Length of both vectors."""
    samples: int = LAION_SAMPLES
    """Length of what the audio tower hears."""

    def __post_init__(self) -> None:
        if self.joint < 1:
            raise ValueError(f"joint must be positive, got {self.joint}")
        if not 1 <= self.audio.mel.num_frames(self.samples) <= self.audio.frames:
            raise ValueError(f"samples must give at most {self.audio.frames} frames, got {self.samples}")


def two_layers(inner: int, joint: int) -> nn.Sequential:
    """Linear, ReLU, linear: names 0 and 2."""
    return nn.Sequential(nn.Linear(inner, joint), nn.ReLU(), nn.Linear(joint, joint))


def training_head(joint: int) -> nn.ModuleDict:
    """Layers that only training uses: names sequential.0 and sequential.3."""
    layers = nn.Sequential(nn.Linear(joint, joint), nn.ReLU(), nn.Identity(), nn.Linear(joint, joint))
    return nn.ModuleDict({"sequential": layers})


class ClapLaionNetwork(nn.Module):
    """Everything in the published file, the heads and scales of training included, which no embedding passes."""

    def __init__(self, config: ClapLaionConfig) -> None:
        super().__init__()
        c = self.config = config
        self.logit_scale_a = nn.Parameter(torch.zeros(()))
        self.logit_scale_t = nn.Parameter(torch.zeros(()))
        self.audio_branch = Htsat(c.audio)
        self.text_branch = Roberta(c.text)
        self.text_transform = training_head(c.joint)
        self.text_projection = two_layers(c.text.width, c.joint)
        self.audio_transform = training_head(c.joint)
        self.audio_projection = two_layers(c.audio.dimensions, c.joint)

    def hear(self, waves: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips joint"]:
        """Unit vectors of waves of exactly the length that is heard."""
        return functional.normalize(self.audio_projection(self.audio_branch(waves)), dim=-1)

    def read(self, tokens: Tensor) -> Float[Tensor, "captions joint"]:
        """Unit vectors of captions, (captions, 77) tokens."""
        return functional.normalize(self.text_projection(self.text_branch(tokens)), dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClapLaion:
    """LAION-CLAP as an embedding model: one unit row of 512 per clip at 48 kHz, and one per caption."""

    network: ClapLaionNetwork
    loaded: LoadedFile
    tokens: CaptionTokenizer

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        tokenizer: Path,
        device: torch.device | str = "cpu",
        config: ClapLaionConfig | None = None,
    ) -> Self:
        """The published file by its path, strictly; `tokenizer` is the folder with roberta-base's vocab.json and
        merges.txt; config None means the published sizes.

        Raises WeightsError in one line naming the file and what does not fit.
        """
        config = config or ClapLaionConfig()
        tokens = CaptionTokenizer.roberta(tokenizer, size=config.text.vocabulary)
        with torch.device("meta"):
            network = ClapLaionNetwork(config)
        try:
            loaded = load_official(network, path, CLAP_LAION, unused=UNUSED)
        except WeightsError as error:
            raise WeightsError(f"{error}{_what_else(path, config)}") from error
        check_constants(network.audio_branch, path)
        return cls(network=network.to(device), loaded=loaded, tokens=tokens)

    @property
    def name(self) -> str:
        return f"clap-laion-music-speech-v1@{self.sample_rate}:{self.loaded.digest}-{self.tokens.digest}"

    @property
    def sample_rate(self) -> int:
        return self.network.config.audio.mel.sample_rate

    @property
    def dimensions(self) -> int:
        return self.network.config.joint

    def embed(self, waves: Float[Tensor, "clips samples"]) -> Embeddings:
        """One unit row per clip, from ten seconds of it.

        Raises:
            ValueError: not (clips, samples), empty, or not finite.
        """
        return sound_rows(
            waves,
            fit=laion_length,
            hear=self.network.hear,
            samples=self.network.config.samples,
            model="LAION-CLAP",
            sample_rate=self.sample_rate,
            device=self._device,
        )

    def embed_text(self, captions: Sequence[str]) -> Float[Tensor, "captions joint"]:
        """One unit row per caption, float32 on the CPU. Raises ValueError for no captions or an empty one."""
        return caption_rows(captions, tokens=self.tokens, read=self.network.read, device=self._device)

    @property
    def _device(self) -> torch.device:
        return self.network.logit_scale_a.device


def _what_else(path: Path, config: ClapLaionConfig) -> str:
    """What a file that does not fit looks like, as the end of a message; empty where it cannot be told."""
    try:
        tensors = read_official(path)
    except WeightsError:
        return ""
    if any(name.startswith("audio_branch.patch_embed.fusion_model.") for name in tensors):
        return "; it is a file with fusion, and this adapter takes the one without"
    first = tensors.get("audio_branch.patch_embed.proj.weight")
    if first is not None and first.ndim == 4 and len(first) != config.audio.embed_dim:
        known = {96: "HTSAT-tiny", 128: "HTSAT-base"}
        found, wanted = (known.get(n, f"an HTSAT of width {n}") for n in (len(first), config.audio.embed_dim))
        return f"; it holds {found}, and this adapter takes {wanted}"
    return ""
