"""Sizes of the MMAudio network: the five published ones and small ones for a CPU (arXiv 2412.15322, table 7)."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args, get_origin, get_type_hints

from teacher.network.sequence import (
    MMAUDIO_WIDTHS,
    SEQUENCE_16K,
    SEQUENCE_44K,
    ConditionWidths,
    SequenceConfig,
    check_whole,
)

RMS_NORM_EPS = 1.1920929e-07
"""Machine epsilon of float32: what the published networks' normalisation uses in float32, whatever the library."""
RMS_NORM_EPS_BFLOAT16 = 2.0**-7
"""Machine epsilon of bfloat16: what PyTorch up to 2.6 put in its place when the activations were bfloat16, and so most
likely what the published networks were trained with. Pass it as `rms_norm_eps` to repeat that."""

BOUNDS: dict[str, tuple[int, int]] = {
    "num_heads": (1, 256),
    "head_dim": (1, 1024),
    "joint_depth": (1, 256),
    "fused_depth": (0, 256),
    "velocity_head": (0, 256),
    "latent_channels": (1, 4096),
    "mlp_multiple_of": (1, 65_536),
    "clip_dim": (1, 65_536),
    "sync_dim": (1, 65_536),
    "text_dim": (1, 65_536),
    "text_tokens": (1, 4096),
}
"""Least and largest values of whole numbers. The largest published network has 14 heads, 7 and 14 blocks; the upper
ends are there so that a configuration from a stranger is refused before anything of absurd size is built."""
LARGEST_HIDDEN = 32_768
LARGEST_FACTOR = 1e6


@dataclass(frozen=True, kw_only=True)
class MMAudioConfig:
    """Architecture of one network; hidden width = num_heads * head_dim, with heads 64 wide in published ones.

    sync, rope, mlp and missing are the choices the paper compares (tables 6, 7 and A3); the defaults are the published
    networks, whose parameters are the same whatever else is offered here.
    """

    num_heads: int
    """Attention heads."""
    joint_depth: int
    """Blocks in which sound, image and text attend to each other."""
    fused_depth: int
    """Blocks on the sound stream alone, after the joint ones."""
    latent_channels: int
    """Channels of the audio latent: 20 at 16 kHz, 40 at 44.1 kHz."""
    sequence: SequenceConfig = field(default_factory=lambda: SEQUENCE_16K)
    """Rates of the latent space."""
    version: Literal["v1", "v2"] = "v1"
    """v2 uses SiLU in every input stage and a time embedding with frequencies up to 10,000 rad per unit."""
    mlp_multiple_of: int = 256
    """The gated MLP's inner width is rounded up to this; 256 in every published network."""
    rms_norm_eps: float = RMS_NORM_EPS
    """Epsilon of the query/key normalisation; explicit because the library default has changed between releases
    (RMS_NORM_EPS_BFLOAT16 is the old one under bfloat16)."""
    condition_scale: float = 1.0
    """Factor on image and text features before they are projected; 1 in every published network. They are unit vectors,
    so sqrt(1024) = 32 gives channels of unit size, without which a small network takes longer to follow its words."""
    head_dim: int = 64
    clip_dim: int = MMAUDIO_WIDTHS.image
    """Channels of an image feature. A new network takes this width, and the next three, from its features."""
    sync_dim: int = MMAUDIO_WIDTHS.sync
    """Channels of a synchronisation feature."""
    text_dim: int = MMAUDIO_WIDTHS.text
    """Channels of the feature of one text position."""
    text_tokens: int = MMAUDIO_WIDTHS.text_tokens
    """Positions of a text."""
    interval_embedding: bool = False
    """A second time: embed the interval t - r as well, so that the network can be an average velocity."""
    guidance_embedding: bool = False
    """A guidance scale omega as an input: embed 1 - 1 / omega too (arXiv 2512.02012), so that one evaluation gives the
    guided average velocity at any scale."""
    velocity_head: int = 0
    """Fused blocks of a second branch that estimates v(x_t, t) during training (arXiv 2512.02012): copies of the last
    ones, with a final layer of their own. Sampling never runs them. 0 = none."""
    sync: Literal["adaln", "sum", "none"] = "adaln"
    """Where synchronisation features enter. adaln: upsampled to the latent rate, they modulate the sound stream token
    by token. sum: image features are upsampled to the synchronisation rate and the outputs of both input stages added,
    so that the visual stream has three times the tokens; the pooled condition alone modulates. The parameters are those
    of adaln. none: not at all, and the network has no sync_input_proj, sync_pos_emb and empty_sync_feat."""
    rope: Literal["aligned", "default", "none"] = "aligned"
    """Rotary positions. aligned: the visual stream counts in latent frames; default: in its own; none: no positions."""
    mlp: Literal["conv", "linear"] = "conv"
    """Gated MLPs of the sound, image and synchronisation streams, input stages included: convolutions along time
    (ConvMLP) or linear layers. The text stream's are linear in either case; linear1 and the first layer of the input
    stages are no MLPs and stay as they are."""
    missing: Literal["mixed", "learned", "zeros"] = "mixed"
    """What stands for an absent modality. mixed: learned tokens for image and synchronisation, the stored features of
    the empty string for text. learned: a learned token for text too (empty_text_feat). zeros: zeros for all three, and
    no learned tokens. empty_string_feat exists in every case; it is data, not trained."""
    time_frequencies: Literal["published", "smooth"] = "published"
    """Frequencies of the embeddings of t and t - r. smooth leaves out those of v2 above 100 rad per unit, without which
    a network can be differentiated in time; v1 has none (see TimestepEmbedder)."""
    time_precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 rounds the frequency table and the time as a network cast whole to bfloat16 does, which is how MMAudio's
    demo runs (see TimestepEmbedder); float32 is how the networks were trained and evaluated."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}, got {getattr(self, name)!r}")
        for name, (least, most) in BOUNDS.items():
            check_whole(name, getattr(self, name), least, most)
        if self.hidden_dim > LARGEST_HIDDEN:
            raise ValueError(f"num_heads * head_dim must be at most {LARGEST_HIDDEN}, got {self.hidden_dim}")
        if self.rope != "none" and self.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        if not 0 <= self.rms_norm_eps < 1:
            raise ValueError(f"rms_norm_eps must lie in [0, 1), got {self.rms_norm_eps}")
        if not (math.isfinite(self.condition_scale) and abs(self.condition_scale) <= LARGEST_FACTOR):
            raise ValueError(f"condition_scale must lie within {LARGEST_FACTOR:g} of 0, got {self.condition_scale}")
        if not 0 <= self.velocity_head <= self.fused_depth:
            raise ValueError(
                f"velocity_head must lie in [0, fused_depth = {self.fused_depth}], got {self.velocity_head}"
            )
        if self.version == "v2" and self.time_frequencies == "smooth" and self.hidden_dim < 4:
            raise ValueError(f"time_frequencies=smooth needs a hidden width of at least 4 in v2, got {self.hidden_dim}")
        if not self.interval_embedding and (self.guidance_embedding or self.velocity_head):
            raise ValueError("guidance_embedding and velocity_head belong to networks with interval_embedding=True")

    @property
    def hidden_dim(self) -> int:
        """Hidden width: num_heads * head_dim."""
        return self.head_dim * self.num_heads

    @property
    def widths(self) -> ConditionWidths:
        """Widths of the condition features that the network takes."""
        return ConditionWidths(
            image=self.clip_dim, sync=self.sync_dim, text=self.text_dim, text_tokens=self.text_tokens
        )

    def with_widths(self, widths: ConditionWidths) -> "MMAudioConfig":
        """The same network for condition features of these widths."""
        return replace(
            self,
            clip_dim=widths.image,
            sync_dim=widths.sync,
            text_dim=widths.text,
            text_tokens=widths.text_tokens,
        )

    @property
    def mlp_dim(self) -> int:
        """Inner width of the gated MLPs: m = multiple * ceil(int(2 * 4 h / 3) / multiple) with h = hidden_dim."""
        return -(-(2 * 4 * self.hidden_dim // 3) // self.mlp_multiple_of) * self.mlp_multiple_of


def _published(
    num_heads: int, joint: int, fused: int, sequence: SequenceConfig, version: Literal["v1", "v2"] = "v1"
) -> MMAudioConfig:
    return MMAudioConfig(
        num_heads=num_heads,
        joint_depth=joint,
        fused_depth=fused,
        latent_channels=20 if sequence == SEQUENCE_16K else 40,
        sequence=sequence,
        version=version,
    )


VARIANTS: dict[str, MMAudioConfig] = {
    "small_16k": _published(7, 4, 8, SEQUENCE_16K),
    "small_44k": _published(7, 4, 8, SEQUENCE_44K),
    "medium_44k": _published(14, 4, 8, SEQUENCE_44K),
    "large_44k": _published(14, 7, 14, SEQUENCE_44K),
    "large_44k_v2": _published(14, 7, 14, SEQUENCE_44K, "v2"),
    "debug_16k": MMAudioConfig(num_heads=1, joint_depth=1, fused_depth=1, latent_channels=20, mlp_multiple_of=64),
    "tiny_16k": MMAudioConfig(
        num_heads=2,
        head_dim=32,
        joint_depth=1,
        fused_depth=4,
        latent_channels=20,
        mlp_multiple_of=32,
        condition_scale=32.0,
    ),
}

VARIANTS |= {
    "mlp_16k": replace(VARIANTS["small_16k"], num_heads=8, joint_depth=6, fused_depth=10, mlp="linear"),
    "n2_13_16k": replace(VARIANTS["small_16k"], joint_depth=2, fused_depth=13),
    "n6_3_16k": replace(VARIANTS["small_16k"], joint_depth=6, fused_depth=3),
}
"""Sizes by name: the five published ones; `debug_16k` for tests and `tiny_16k` for training on a CPU; and the paper's
comparisons at the size of small_16k (table 7): `mlp_16k` without ConvMLPs, wider and deeper to match its parameters,
and fewer or more joint blocks."""


def variant(name: str) -> MMAudioConfig:
    """The configuration called `name`, or an error that lists the names."""
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; choose one of {', '.join(VARIANTS)}")
    return VARIANTS[name]
