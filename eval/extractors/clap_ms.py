"""MS-CLAP 2023 (arXiv 2309.05767): sound and caption as unit vectors of 1024, for a CLAP score and for PAM.

`CLAP_weights_2023.pth`: HTSAT-tiny and GPT-2, each followed by a projection with a residual and a norm. Module names
are those of the published state dict, which lies under "model".

Differences from av-benchmark:
- Of a clip longer than 7 s the middle is heard, not a place drawn from an unseeded generator (see
  `htsat_front_end.py`). Shorter clips are treated alike: repeated until 7 s are full.
- Stereo is mixed to mono before it comes here (`eval/extractors/clip_audio.py`, which also takes the mean out of the
  wave); the published code puts the channels one behind the other.
- Loading is strict, where the published code ignores what is missing. GPT-2's causal masks, which old transformers kept
  in the file, are the only names left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.base import Embeddings
from eval.extractors.clap_rows import caption_rows, sound_rows
from eval.extractors.clap_text import GPT2_SMALL, Gpt2, TextConfig
from eval.extractors.clap_tokens import CaptionTokenizer
from eval.extractors.htsat import MS_2023, Htsat, HtsatConfig, check_constants
from eval.extractors.htsat_front_end import MS_SAMPLES, ms_length
from eval.extractors.official import LoadedFile, OfficialFile, load_official, read_official
from teacher.files.errors import WeightsError

CLAP_MS_2023 = OfficialFile(
    file="CLAP_weights_2023.pth",
    url="https://huggingface.co/microsoft/msclap/resolve/main/CLAP_weights_2023.pth",
    licence="MIT",
)
UNUSED = ("caption_encoder.base.h.*.attn.bias", "caption_encoder.base.h.*.attn.masked_bias")
"""The lower triangle and the number written above it, kept in the file by transformers before 4.31."""


@dataclass(frozen=True, kw_only=True)
class ClapMsConfig:
    """Sizes; the defaults are the published ones, 159 865 177 numbers in 357 tensors."""

    audio: HtsatConfig = MS_2023
    text: TextConfig = GPT2_SMALL
    joint: int = 1024
    """Length of both vectors."""
    samples: int = MS_SAMPLES
    """Length of what the audio tower hears."""

    def __post_init__(self) -> None:
        if self.joint < 1:
            raise ValueError(f"joint must be positive, got {self.joint}")
        if not 1 <= self.audio.mel.num_frames(self.samples) <= self.audio.frames:
            raise ValueError(f"samples must give at most {self.audio.frames} frames, got {self.samples}")


class Projection(nn.Module):
    """LayerNorm(a + W2 gelu(a)) with a = W1 x."""

    def __init__(self, inner: int, joint: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inner, joint, bias=False)
        self.linear2 = nn.Linear(joint, joint, bias=False)
        self.layer_norm = nn.LayerNorm(joint)

    def forward(self, x: Float[Tensor, "batch inner"]) -> Float[Tensor, "batch joint"]:
        a = self.linear1(x)
        return self.layer_norm(a + self.linear2(functional.gelu(a)))


class AudioEncoder(nn.Module):
    """Waves of the length that is heard -> vectors, not yet of length 1."""

    def __init__(self, c: ClapMsConfig) -> None:
        super().__init__()
        self.base = nn.ModuleDict({"htsat": Htsat(c.audio)})
        self.projection = Projection(c.audio.dimensions, c.joint)

    def forward(self, waves: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips joint"]:
        return self.projection(self.base["htsat"](waves))


class CaptionEncoder(nn.Module):
    """Tokens -> vectors, not yet of length 1, taken where GPT-2 has read `last_token`."""

    def __init__(self, c: ClapMsConfig) -> None:
        super().__init__()
        self.base = Gpt2(c.text)
        self.projection = Projection(c.text.width, c.joint)

    def forward(self, tokens: Int[Tensor, "captions 77"]) -> Float[Tensor, "captions joint"]:
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.projection(self.base(tokens)[rows, last_token(tokens)])


class ClapMsNetwork(nn.Module):
    """Everything in the published file."""

    def __init__(self, config: ClapMsConfig) -> None:
        super().__init__()
        c = self.config = config
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.audio_encoder = AudioEncoder(c)
        self.caption_encoder = CaptionEncoder(c)

    def hear(self, waves: Float[Tensor, "clips samples"]) -> Float[Tensor, "clips joint"]:
        """Unit vectors of waves of exactly the length that is heard."""
        return functional.normalize(self.audio_encoder(waves), dim=-1)

    def read(self, tokens: Int[Tensor, "captions 77"]) -> Float[Tensor, "captions joint"]:
        """Unit vectors of captions."""
        return functional.normalize(self.caption_encoder(tokens), dim=-1)


def last_token(tokens: Int[Tensor, "captions 77"]) -> Int[Tensor, "captions"]:
    """Place of the last token: the number of tokens other than 0, less one.

    This is how the published code finds it, and the embeddings of training were taken there. "!" is token 0 as well:
    each one in a caption moves the place one to the left of the end.
    """
    return (tokens != 0).sum(dim=1) - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ClapMs:
    """MS-CLAP 2023 as an embedding model: one unit row of 1024 per clip at 44.1 kHz, and one per caption."""

    network: ClapMsNetwork
    loaded: LoadedFile
    tokens: CaptionTokenizer

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        tokenizer: Path,
        device: torch.device | str = "cpu",
        config: ClapMsConfig | None = None,
    ) -> Self:
        """The published file by its path, strictly; `tokenizer` is the folder with gpt2's vocab.json and merges.txt;
        config None means the published sizes.

        Raises WeightsError in one line naming the file and what does not fit.
        """
        config = config or ClapMsConfig()
        tokens = CaptionTokenizer.gpt2(tokenizer, size=config.text.vocabulary)
        with torch.device("meta"):
            network = ClapMsNetwork(config)
        try:
            loaded = load_official(network, path, CLAP_MS_2023, unused=UNUSED)
        except WeightsError as error:
            raise WeightsError(f"{error}{_what_else(path)}") from error
        htsat = network.audio_encoder.base["htsat"]
        assert isinstance(htsat, Htsat)
        check_constants(htsat, path)
        return cls(network=network.to(device), loaded=loaded, tokens=tokens)

    @property
    def name(self) -> str:
        return f"clap-ms-2023-v1@{self.sample_rate}:{self.loaded.digest}-{self.tokens.digest}"

    @property
    def sample_rate(self) -> int:
        return self.network.config.audio.mel.sample_rate

    @property
    def dimensions(self) -> int:
        return self.network.config.joint

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax over captions: exp of the parameter in the file."""
        return float(self.network.logit_scale.exp())

    def embed(self, waves: Float[Tensor, "clips samples"]) -> Embeddings:
        """One unit row per clip, from seven seconds of it.

        Raises:
            ValueError: not (clips, samples), empty, or not finite.
        """
        return sound_rows(
            waves,
            fit=ms_length,
            hear=self.network.hear,
            samples=self.network.config.samples,
            model="MS-CLAP",
            sample_rate=self.sample_rate,
            device=self._device,
        )

    def embed_text(self, captions: Sequence[str]) -> Float[Tensor, "captions joint"]:
        """One unit row per caption, float32 on the CPU. Raises ValueError for no captions or an empty one."""
        return caption_rows(captions, tokens=self.tokens, read=self.network.read, device=self._device)

    @property
    def _device(self) -> torch.device:
        return self.network.logit_scale.device


def _what_else(path: Path) -> str:
    """What a file that does not fit looks like, as the end of a message; empty where it cannot be told."""
    try:
        names = read_official(path).keys()
    except WeightsError:
        return ""
    if any(name.startswith("caption_encoder.base.encoder.layer.") for name in names):
        return "; its captions are read by BERT, as in CLAP_weights_2022.pth"
    if any(name.startswith("clap.") for name in names):
        return "; it looks like clapcap_weights_2023.pth, the captioner"
    return ""
