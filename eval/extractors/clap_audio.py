"""The audio tower of LAION-CLAP and of MS-CLAP 2023: clips cut to one length, their log mel, and HTS-AT.

    waves -> one length -> power spectrogram -> log mel -> batch norm -> image -> four Swin stages -> mean over tokens

Both networks take one fixed length. What av-benchmark does with other lengths, and what is done here:

- LAION-CLAP, 10 s at 48 kHz: as many whole copies of a shorter clip as fit, then zeros. A clip of eight seconds comes
  once and is followed by two seconds of silence.
- MS-CLAP 2023, 7 s at 44.1 kHz: a shorter clip is repeated until the seven seconds are full.
- A longer clip is cropped. av-benchmark draws the place from an unseeded generator, so that its scores of eight-second
  clips (MS-CLAP) and of clips above ten seconds (LAION-CLAP) change from run to run. Here it is the middle of the same
  range of places: every model is scored on the same time of the same clip, so that differences between models stay
  paired. The mean over clips differs from that of drawn places by what the edges of clips are unlike their middle.

HTS-AT (arXiv 2202.00874) is `transformers.ClapAudioModel` without fusion, built from sizes alone. It stretches the log
mel to four times as many frames as its image has columns and stacks the four quarters along frequency: 1024 frames of
64 bands become an image of 256 x 256, the first quarter on top. The published files hold it under other names
(`htsat_name`), together with the front end as tensors and AudioSet's classifier, which the embedding does not pass. The
transform and the mel filters that run are those of the file; `check_constants` refuses a file whose constants are not
those that the network was built for.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.mel_front_end import centred, check_filters, decibels, fourier_weights, frames, triangle_filters
from mf_mjt_torchvision import guard_torchvision
from teacher.files.errors import WeightsError

LAION_SAMPLES = 480_000
"""10 s at 48 kHz."""
MS_SAMPLES = 308_700
"""7 s at 44.1 kHz."""
AMIN = 1e-10
"""Least power of a mel band, -100 dB."""
MASKED = -100.0
"""Added to the attention scores of pairs that are no neighbours; a finite number, as in the files."""
CONSTANT_TOLERANCE = 1e-4
"""Greatest difference of the file's constants from ours, as a fraction of the greatest entry."""


def laion_length(
    waves: Float[Tensor, "clips length"], *, samples: int = LAION_SAMPLES
) -> Float[Tensor, "clips samples"]:
    """Whole copies that fit and zeros; or the middle one of the length - samples + 1 crops there are.

    Raises ValueError unless `waves` are (clips, length) with at least one sample.
    """
    length = _length(waves, samples)
    if length > samples:
        return _crop(waves, samples, places=length - samples + 1)
    repeated = waves.repeat(1, samples // length)
    return functional.pad(repeated, (0, samples - repeated.shape[1]))


def ms_length(waves: Float[Tensor, "clips length"], *, samples: int = MS_SAMPLES) -> Float[Tensor, "clips samples"]:
    """Copies until the length is full, the last one cut; or the middle one of the first length - samples crops.

    The published code never draws the very last place.

    Raises ValueError unless `waves` are (clips, length) with at least one sample.
    """
    length = _length(waves, samples)
    if length > samples:
        return _crop(waves, samples, places=length - samples)
    return waves.repeat(1, -(-samples // length))[:, :samples]


def _crop(waves: Tensor, samples: int, *, places: int) -> Tensor:
    start = places // 2
    return waves[:, start : start + samples]


def _length(waves: Tensor, samples: int) -> int:
    if waves.ndim != 2 or len(waves) == 0 or waves.shape[1] == 0:
        raise ValueError(f"waves must be (clips, samples) with at least one of each, got {tuple(waves.shape)}")
    if samples < 1:
        raise ValueError(f"samples must be positive, got {samples}")
    return waves.shape[1]


@dataclass(frozen=True, kw_only=True)
class LogMelConfig:
    """Log mel of torchlibrosa: periodic Hann window of n_fft, centred with reflection, power, 10 log10, no top_db."""

    sample_rate: int
    """Hz."""
    n_fft: int = 1024
    hop_length: int
    num_mels: int = 64
    fmin_hz: float = 50.0
    fmax_hz: tuple[float, ...] = (14_000.0,)
    """Upper edges that the filters of the file may have. The file's own filters are what runs."""

    def __post_init__(self) -> None:
        if not 1 <= self.hop_length <= self.n_fft:
            raise ValueError(f"hop_length must be between 1 and n_fft {self.n_fft}, got {self.hop_length}")
        if not self.fmax_hz:
            raise ValueError("fmax_hz must name at least one upper edge, got none")
        for fmax in self.fmax_hz:
            check_filters(
                sample_rate=self.sample_rate, n_fft=self.n_fft, num_mels=self.num_mels, fmin_hz=self.fmin_hz,
                fmax_hz=fmax,
            )  # fmt: skip

    @property
    def bins(self) -> int:
        """Frequencies of the transform: n_fft / 2 + 1."""
        return self.n_fft // 2 + 1

    def num_frames(self, samples: int) -> int:
        """Centred frames: 1 + samples // hop_length."""
        return 1 + samples // self.hop_length

    def filters(self, fmax_hz: float) -> Float[Tensor, "bins mels"]:
        """Filters of unit area on Slaney's scale, one column each, float32."""
        rows = triangle_filters(
            sample_rate=self.sample_rate, n_fft=self.n_fft, num_mels=self.num_mels, fmin_hz=self.fmin_hz,
            fmax_hz=fmax_hz, scale="slaney", straight_in="hz", unit_area=True,
        )  # fmt: skip
        return rows.T.float().contiguous()


class LogMel(nn.Module):
    """Waves to decibels by the transform and the mel filters that a file holds; zeros until they are loaded."""

    real: Tensor
    """(bins, 1, n_fft): windowed cosines, the weights of a convolution in the published networks."""
    imag: Tensor
    """(bins, 1, n_fft): windowed sines, of either sign."""
    filters: Tensor
    """(bins, mels)."""

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        c = self.config = config
        self.register_buffer("real", torch.zeros(c.bins, 1, c.n_fft))
        self.register_buffer("imag", torch.zeros(c.bins, 1, c.n_fft))
        self.register_buffer("filters", torch.zeros(c.bins, c.num_mels))

    def forward(self, waves: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch frames mels"]:
        """-100 dB for silence; 1 + samples // hop_length frames."""
        framed = frames(centred(waves, self.config.n_fft), self.config.n_fft, self.config.hop_length)
        power = (framed @ self.real[:, 0].T).square() + (framed @ self.imag[:, 0].T).square()
        return decibels(power @ self.filters, amin=AMIN)


@dataclass(frozen=True, kw_only=True)
class HtsatConfig:
    """Sizes of the network and its front end; the sizes that have a default are common to the published ones."""

    mel: LogMelConfig
    embed_dim: int
    """Width of the first stage; each further stage has twice that of the one before."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    image: int = 256
    """Rows and columns of the image that the log mel is folded into."""
    patch: int = 4
    window: int = 8
    """Rows and columns of an attention window, in tokens."""
    mlp_ratio: int = 4
    classes: int = 527
    """Classes of AudioSet, for the classifier that the files hold."""

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.heads) or min(self.depths) < 1:
            raise ValueError(f"depths must be positive, one for each of the heads {self.heads}, got {self.depths}")
        for name, value in (
            ("embed_dim", self.embed_dim),
            ("patch", self.patch),
            ("mlp_ratio", self.mlp_ratio),
            ("classes", self.classes),
        ):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.window < 2:
            raise ValueError(f"window must be at least 2, got {self.window}")
        for stage, heads in enumerate(self.heads):
            if heads < 1 or self.width(stage) % heads:
                raise ValueError(f"heads must divide the widths of their stages, got {heads} for {self.width(stage)}")
        rows = self.patch * 2 ** (len(self.depths) - 1) * self.fold
        if self.image < 1 or self.fold * self.mel.num_mels != self.image or self.image % rows:
            raise ValueError(
                f"image must be a multiple of num_mels {self.mel.num_mels} and of {rows}, got {self.image}"
            )
        for stage in range(len(self.depths)):
            if self.side(stage) % self.window:
                raise ValueError(f"window must divide the sides of the maps, got {self.window} for {self.side(stage)}")

    @property
    def fold(self) -> int:
        """Parts of the log mel that are stacked in the image: 4."""
        return max(self.image // self.mel.num_mels, 1)

    @property
    def frames(self) -> int:
        """Frames that the log mel is stretched to: 1024."""
        return self.image * self.fold

    @property
    def dimensions(self) -> int:
        """Length of the embedding: 8 embed_dim after four stages."""
        return self.width(len(self.depths) - 1)

    @property
    def shifted(self) -> tuple[tuple[int, int], ...]:
        """(stage, block) of the blocks whose windows are shifted: every second one where a map is several windows."""
        return tuple(
            (stage, block)
            for stage, depth in enumerate(self.depths)
            for block in range(1, depth, 2)
            if self.side(stage) > self.window
        )

    def width(self, stage: int) -> int:
        """Width of the tokens of a stage."""
        return self.embed_dim * 2**stage

    def side(self, stage: int) -> int:
        """Rows and columns of the map of a stage."""
        return self.image // self.patch // 2**stage


HTSAT_BASE = HtsatConfig(mel=LogMelConfig(sample_rate=48_000, hop_length=480), embed_dim=128, depths=(2, 2, 12, 2))
"""Audio tower of music_speech_audioset_epoch_15_esc_89.98.pt (LAION-CLAP): 287 tensors under `audio_branch.`."""
HTSAT_TINY = HtsatConfig(
    mel=LogMelConfig(sample_rate=44_100, hop_length=320, fmax_hz=(14_000.0, 8000.0)), embed_dim=96, depths=(2, 2, 6, 2)
)
"""Audio tower of CLAP_weights_2023.pth (MS-CLAP): 200 tensors under `audio_encoder.base.htsat.`.

The package's settings for this file say 8000 Hz, but its network does not read them and takes 14 000 Hz from another
file; what counts is the filters in the file of weights, and both are known here."""


class Htsat(nn.Module):
    """Waves of the tower's length to the embedding that CLAP's projection takes.

    Beside what the embedding passes it holds what the published files hold: `tscam_conv` and `head`, the classifier of
    AudioSet, and the masks of shifted windows, which transformers makes itself. `transformers` is imported when a tower
    is built.
    """

    def __init__(self, config: HtsatConfig) -> None:
        guard_torchvision()
        from transformers import ClapAudioConfig, ClapAudioModel

        super().__init__()
        c = self.config = config
        self.log_mel = LogMel(c.mel)
        self.tower = ClapAudioModel(
            ClapAudioConfig(
                window_size=c.window,
                num_mel_bins=c.mel.num_mels,
                spec_size=c.image,
                patch_size=c.patch,
                patch_stride=(c.patch, c.patch),
                hidden_size=c.dimensions,
                depths=list(c.depths),
                num_attention_heads=list(c.heads),
                patch_embeds_hidden_size=c.embed_dim,
                mlp_ratio=float(c.mlp_ratio),
                hidden_act="gelu",
                layer_norm_eps=1e-5,
                enable_fusion=False,
            )
        )
        self.tscam_conv = nn.Conv2d(c.dimensions, c.classes, (c.side(len(c.depths) - 1) // c.fold, 3))
        self.head = nn.Linear(c.classes, c.classes)
        self.masks = nn.Module()
        for stage, block in c.shifted:
            self.masks.register_buffer(f"{stage}-{block}", shifted_mask(c.side(stage), c.window, c.window // 2))

    def forward(self, waves: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch dimensions"]:
        """Mono waves at the network's rate and of its length (`laion_length`, `ms_length`) -> embedding.

        The mean over all tokens after the last norm.
        """
        return self.embed_mel(self.log_mel(waves))

    def embed_mel(self, mel: Float[Tensor, "batch frames mels"]) -> Float[Tensor, "batch dimensions"]:
        """Log mel of at most `config.frames` frames -> embedding."""
        return self.tower(input_features=mel[:, None]).pooler_output


OFFICIAL_WORDS = (
    (r"^log_mel\.real$", "spectrogram_extractor.stft.conv_real.weight"),
    (r"^log_mel\.imag$", "spectrogram_extractor.stft.conv_imag.weight"),
    (r"^log_mel\.filters$", "logmel_extractor.melW"),
    (r"^masks\.(\d+)-(\d+)$", r"layers.\1.blocks.\2.attn_mask"),
    (r"^tower\.audio_encoder\.", ""),
    (r"^batch_norm\.", "bn0."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.self\.(query|key|value)\.", ".attn.qkv."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
"""Replacements, made in this order, that turn a name in `Htsat` into the published one."""


def htsat_name(own: str) -> str:
    """The published name of a tensor of `Htsat`. Query, key and value are one published tensor, in this order."""
    for pattern, published in OFFICIAL_WORDS:
        own = re.sub(pattern, published, own)
    return own


def relative_positions(window: int) -> Int[Tensor, "tokens tokens"]:
    """Row of the bias table for each pair of places in a window: (dr + w - 1) (2 w - 1) + (dc + w - 1).

    dr and dc are the differences of the rows and columns, the first place minus the second; places are row by row.
    """
    places = torch.arange(window * window)
    rows, columns = places // window, places % window
    return (rows[:, None] - rows + window - 1) * (2 * window - 1) + (columns[:, None] - columns + window - 1)


def shifted_mask(side: int, window: int, shift: int) -> Float[Tensor, "windows tokens tokens"]:
    """0 for pairs of a window that were neighbours before the map was rolled by `shift`, -100 for the others.

    Along either axis the rolled map is made of three runs: what no border crosses, the last window up to the seam, and
    the `shift` places behind the seam, which come from the other end.
    """
    place = torch.arange(side)
    run = (place >= side - window).long() + (place >= side - shift).long()
    regions = rearrange(3 * run[:, None] + run, "(i r) (j c) -> (i j) (r c)", r=window, c=window)
    return (regions[:, None, :] != regions[:, :, None]).float() * MASKED


def front_end_tensors(config: HtsatConfig, *, fmax_hz: float | None = None) -> dict[str, Tensor]:
    """The front end by the names of `Htsat`, float32; `fmax_hz` None means the first that the configuration names."""
    real, imag = fourier_weights(config.mel.n_fft)
    filters = config.mel.filters(config.mel.fmax_hz[0] if fmax_hz is None else fmax_hz)
    return {"log_mel.real": real, "log_mel.imag": imag, "log_mel.filters": filters}


def check_constants(network: Htsat, path: Path) -> None:
    """Raises WeightsError unless the transform, the filters, the positions and the masks that were loaded from `path`
    are those that the network was built for. The sign of the sines does not matter."""
    c = network.config
    ours = front_end_tensors(c)
    wanted: dict[str, tuple[Tensor, ...]] = {name: (tensor,) for name, tensor in ours.items()}
    wanted["log_mel.imag"] = (ours["log_mel.imag"], -ours["log_mel.imag"])
    wanted["log_mel.filters"] = tuple(c.mel.filters(fmax) for fmax in c.mel.fmax_hz)
    for stage, block in c.shifted:
        wanted[f"masks.{stage}-{block}"] = (shifted_mask(c.side(stage), c.window, c.window // 2),)
    buffers = dict(network.named_buffers())
    positions = (relative_positions(c.window),)
    wanted |= {name: positions for name in buffers if name.endswith("relative_position_index")}
    for name, candidates in wanted.items():
        theirs = buffers[name].cpu().double()
        differences = [float((theirs - one.double()).abs().max() / one.double().abs().max()) for one in candidates]
        if not min(differences) <= CONSTANT_TOLERANCE:
            raise WeightsError(
                f"{path} was made for another network: {htsat_name(name)} differs from ours by {min(differences):.2g} "
                "of its greatest value"
            )
