"""LAION-CLAP (arXiv 2211.06687) and MS-CLAP 2023 (arXiv 2309.05767): sound and caption as unit vectors of one length.

The cosine of a clip's vector and its caption's is the CLAP score; with MS-CLAP also PAM is computed. Both are one
network: an HTS-AT for sound, a transformer for captions, a projection behind each. A `ClapSpec` holds what differs.

- `CLAP_LAION`: HTSAT-base without fusion and RoBERTa-base, each followed by two linear layers, to 512 numbers.
- `CLAP_MS_2023`: HTSAT-tiny and GPT-2, each followed by a projection with a residual and a norm, to 1024 numbers.

Differences from av-benchmark:
- Of a clip longer than the 10 s or 7 s that a network takes, the middle is used, not a place drawn from an unseeded
  generator (see `clap_audio.py`). Shorter clips are treated alike.
- Loading is strict, where the published code of MS-CLAP ignores what is missing. The position numbers and causal masks
  that old versions of transformers stored in the files are the only names left out.
- Channels, the mean of the wave and the sample rate are the business of `eval/extractors/clip_audio.py`: stereo is
  mixed to mono before it comes here, where MS-CLAP's published code puts the channels one behind the other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.base import LoadedFile, OfficialFile, check_waves, exact_float32, load_official, read_official
from eval.extractors.clap_audio import (
    HTSAT_BASE,
    HTSAT_TINY,
    LAION_SAMPLES,
    MS_SAMPLES,
    Htsat,
    HtsatConfig,
    check_constants,
    htsat_name,
    laion_length,
    ms_length,
)
from eval.extractors.clap_text import (
    GPT2_SMALL,
    ROBERTA_BASE,
    CaptionTokenizer,
    Gpt2Tower,
    RobertaTower,
    TextConfig,
)
from eval.metrics.embeddings import Embeddings
from teacher.files.errors import WeightsError

CLIPS_AT_ONCE = 4
"""Clips per forward pass; it bounds the memory, no result depends on it."""
CAPTIONS_AT_ONCE = 32
"""Captions per forward pass; each is 77 tokens long, so that its result does not depend on the others."""


@dataclass(frozen=True, kw_only=True)
class ClapSpec:
    """How one published model differs from the other; sizes are the published ones unless a test makes them smaller."""

    title: str
    """Name of the model in messages."""
    name: str
    """First part of the name of the features; a new one throws away what users have computed."""
    official: OfficialFile
    names: Mapping[str, str]
    """Beginnings of names in `ClapNetwork`, and what the published file has in their place."""
    unused: tuple[str, ...]
    """Patterns of names that transformers before 4.31 stored in the file, and that nothing needs."""
    audio: HtsatConfig
    fit: Callable[..., Tensor]
    """Waves of any length to `samples`."""
    samples: int
    """Samples that the audio tower takes."""
    text: TextConfig
    text_tower: Callable[[TextConfig], nn.Module]
    """Tokens (captions, 77) to vectors (captions, text.width)."""
    tokenizer: Callable[..., CaptionTokenizer]
    joint: int
    """Length of both vectors."""
    projection: Callable[[int, int], nn.Module]
    """Makes the projection from the width of a tower to `joint`."""
    training: Callable[[int], nn.Module]
    """Further modules of the file that only training uses."""
    other_file: Callable[[Mapping[str, Tensor], HtsatConfig], str]
    """What kind of file one that does not fit probably is, as the end of a message; empty where that is unknown."""

    def __post_init__(self) -> None:
        if self.joint < 1:
            raise ValueError(f"joint must be positive, got {self.joint}")
        if not 1 <= self.audio.mel.num_frames(self.samples) <= self.audio.frames:
            raise ValueError(f"samples must give at most {self.audio.frames} frames, got {self.samples}")


class ClapNetwork(nn.Module):
    """Everything in a published file, what only training uses included, which no embedding passes."""

    def __init__(self, spec: ClapSpec) -> None:
        super().__init__()
        self.spec = spec
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.audio = Htsat(spec.audio)
        self.audio_projection = spec.projection(spec.audio.dimensions, spec.joint)
        self.text = spec.text_tower(spec.text)
        self.text_projection = spec.projection(spec.text.width, spec.joint)
        self.training_only = spec.training(spec.joint)

    def embed_waves(self, waves: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips joint"]:
        """Unit vectors of waves of exactly `spec.samples` samples."""
        return functional.normalize(self.audio_projection(self.audio(waves)), dim=-1)

    def embed_tokens(self, tokens: Tensor) -> Float[Tensor, "captions joint"]:
        """Unit vectors of captions, (captions, 77) tokens."""
        return functional.normalize(self.text_projection(self.text(tokens)), dim=-1)

    def official_names(self) -> dict[str, tuple[str, ...]]:
        """Published name of each tensor, and the one name or the three (query, key, value) it has here."""
        names: dict[str, tuple[str, ...]] = {}
        for own in self.state_dict():
            begin = next(begin for begin in self.spec.names if own.startswith(begin))
            rest = own.removeprefix(begin)
            official = self.spec.names[begin] + (htsat_name(rest) if begin == "audio." else rest)
            names[official] = (*names.get(official, ()), own)
        return names


@dataclass(frozen=True, kw_only=True, eq=False)
class Clap:
    """A CLAP model as an embedding model: one unit row per clip at the model's rate, and one per caption."""

    network: ClapNetwork
    loaded: LoadedFile
    tokens: CaptionTokenizer

    @classmethod
    def load(cls, path: Path, spec: ClapSpec, *, tokenizer: Path, device: torch.device | str = "cpu") -> Self:
        """The published file by its path, strictly; `tokenizer` is the folder with its vocab.json and merges.txt.

        Raises WeightsError in one line naming the file and what does not fit.
        """
        tokens = spec.tokenizer(tokenizer, size=spec.text.vocabulary)
        with torch.device("meta"):
            network = ClapNetwork(spec)
        try:
            loaded = load_official(network, path, spec.official, unused=spec.unused, names=network.official_names())
        except WeightsError as error:
            raise WeightsError(f"{error}{_other_file(path, spec)}") from error
        check_constants(network.audio, path)
        return cls(network=network.to(device), loaded=loaded, tokens=tokens)

    @property
    def spec(self) -> ClapSpec:
        """The description of the published model that this is."""
        return self.network.spec

    @property
    def name(self) -> str:
        return f"{self.spec.name}@{self.sample_rate}:{self.loaded.digest}-{self.tokens.digest}"

    @property
    def sample_rate(self) -> int:
        return self.spec.audio.mel.sample_rate

    @property
    def dimensions(self) -> int:
        return self.spec.joint

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax over captions: exp of the parameter in the file."""
        return float(self.network.logit_scale.exp())

    @torch.no_grad()
    def embed(self, waves: Float[Tensor, "clips samples"]) -> Embeddings:
        """One unit row per clip, from the `spec.samples` samples that `spec.fit` makes of it.

        Raises:
            ValueError: not (clips, samples), empty, or not finite.
        """
        spec, device = self.spec, self.network.logit_scale.device
        check_waves(waves, model=spec.title, sample_rate=self.sample_rate, shortest=1)
        with exact_float32():
            parts = [
                self.network.embed_waves(spec.fit(some.float(), samples=spec.samples).to(device)).cpu()
                for some in waves.split(CLIPS_AT_ONCE)
            ]
        return Embeddings(rows=torch.cat(parts), counts=(1,) * len(waves))

    @torch.no_grad()
    def embed_text(self, captions: Sequence[str]) -> Float[Tensor, "captions joint"]:
        """One unit row per caption, float32 on the CPU. Raises ValueError for no captions or an empty one."""
        device = self.network.logit_scale.device
        with exact_float32():
            parts = [
                self.network.embed_tokens(some.to(device)).cpu()
                for some in self.tokens(captions).split(CAPTIONS_AT_ONCE)
            ]
        return torch.cat(parts)


def _other_file(path: Path, spec: ClapSpec) -> str:
    try:
        return spec.other_file(read_official(path), spec.audio)
    except WeightsError:
        return ""


def two_layers(inner: int, joint: int) -> nn.Sequential:
    """LAION-CLAP's projection: linear, ReLU, linear."""
    return nn.Sequential(nn.Linear(inner, joint), nn.ReLU(), nn.Linear(joint, joint))


class LaionTraining(nn.Module):
    """LAION-CLAP's second logit scale, and the transforms between projection and loss: two linear layers each."""

    def __init__(self, joint: int) -> None:
        super().__init__()
        self.logit_scale_t = nn.Parameter(torch.zeros(()))
        for side in ("audio", "text"):
            layers = nn.Sequential(nn.Linear(joint, joint), nn.ReLU(), nn.Identity(), nn.Linear(joint, joint))
            self.add_module(f"{side}_transform", nn.ModuleDict({"sequential": layers}))


def _other_laion_file(tensors: Mapping[str, Tensor], audio: HtsatConfig) -> str:
    if any(name.startswith("audio_branch.patch_embed.fusion_model.") for name in tensors):
        return "; it is a file with fusion, and this adapter takes the one without"
    first = tensors.get("audio_branch.patch_embed.proj.weight")
    if first is not None and first.ndim == 4 and len(first) != audio.embed_dim:
        known = {96: "HTSAT-tiny", 128: "HTSAT-base"}
        found, wanted = (known.get(n, f"an HTSAT of width {n}") for n in (len(first), audio.embed_dim))
        return f"; it holds {found}, and this adapter takes {wanted}"
    return ""


CLAP_LAION = ClapSpec(
    title="LAION-CLAP",
    name="clap-laion-music-speech-v1",
    official=OfficialFile(
        file="music_speech_audioset_epoch_15_esc_89.98.pt",
        url="https://huggingface.co/lukewys/laion_clap/resolve/main/music_speech_audioset_epoch_15_esc_89.98.pt",
        licence="CC0-1.0 (of the code)",
    ),
    names={
        "logit_scale": "logit_scale_a",
        "audio.": "audio_branch.",
        "audio_projection.": "audio_projection.",
        "text.base.": "text_branch.",
        "text_projection.": "text_projection.",
        "training_only.": "",
    },
    unused=("text_branch.embeddings.position_ids",),
    audio=HTSAT_BASE,
    fit=laion_length,
    samples=LAION_SAMPLES,
    text=ROBERTA_BASE,
    text_tower=RobertaTower,
    tokenizer=CaptionTokenizer.roberta,
    joint=512,
    projection=two_layers,
    training=LaionTraining,
    other_file=_other_laion_file,
)
"""music_speech_audioset_epoch_15_esc_89.98.pt: 200 064 474 numbers in 504 tensors, behind "module."."""


class MsProjection(nn.Module):
    """MS-CLAP's projection: LayerNorm(a + W2 gelu(a)) with a = W1 x."""

    def __init__(self, inner: int, joint: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inner, joint, bias=False)
        self.linear2 = nn.Linear(joint, joint, bias=False)
        self.layer_norm = nn.LayerNorm(joint)

    def forward(self, x: Float[Tensor, "batch inner"]) -> Float[Tensor, "batch joint"]:
        a = self.linear1(x)
        return self.layer_norm(a + self.linear2(functional.gelu(a)))


def _nothing(joint: int) -> nn.Module:
    """MS-CLAP's file holds nothing that only training uses."""
    return nn.Module()


def _other_ms_file(tensors: Mapping[str, Tensor], audio: HtsatConfig) -> str:
    if any(name.startswith("caption_encoder.base.encoder.layer.") for name in tensors):
        return "; its captions are read by BERT, as in CLAP_weights_2022.pth"
    if any(name.startswith("clap.") for name in tensors):
        return "; it looks like clapcap_weights_2023.pth, the captioner"
    return ""


CLAP_MS_2023 = ClapSpec(
    title="MS-CLAP",
    name="clap-ms-2023-v1",
    official=OfficialFile(
        file="CLAP_weights_2023.pth",
        url="https://huggingface.co/microsoft/msclap/resolve/main/CLAP_weights_2023.pth",
        licence="MIT",
    ),
    names={
        "logit_scale": "logit_scale",
        "audio.": "audio_encoder.base.htsat.",
        "audio_projection.": "audio_encoder.projection.",
        "text.base.": "caption_encoder.base.",
        "text_projection.": "caption_encoder.projection.",
    },
    unused=("caption_encoder.base.h.*.attn.bias", "caption_encoder.base.h.*.attn.masked_bias"),
    audio=HTSAT_TINY,
    fit=ms_length,
    samples=MS_SAMPLES,
    text=GPT2_SMALL,
    text_tower=Gpt2Tower,
    tokenizer=CaptionTokenizer.gpt2,
    joint=1024,
    projection=MsProjection,
    training=_nothing,
    other_file=_other_ms_file,
)
"""CLAP_weights_2023.pth: 159 865 177 numbers in 357 tensors, which lie under "model"."""
