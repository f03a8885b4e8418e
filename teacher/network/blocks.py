"""Blocks of the multimodal transformer (arXiv 2412.15322, section 3.3): joint, fused, ConvMLP, adaLN."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meanflow.attention import attention
from teacher.network.embeddings import Rotary, rotate
from teacher.network.variants import MMAudioConfig


class ChannelLastConv1d(nn.Conv1d):
    """Convolution along the tokens of (B, N, C) with "same" zero padding; weights in Conv1d layout (out, in, k).

    On a CPU it is one matrix product over concatenated shifts, about twice as fast in training as the native kernel for
    the short sequences and small widths met there; elsewhere the native convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return channel_last_conv(x, self.weight, self.bias)


def channel_last_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution of x (B, N, in) with weight (out, in, k), k odd, zero padding (k - 1) / 2: (B, N, out)."""
    size, frames = weight.shape[2], x.shape[1]
    if x.device.type != "cpu":
        return F.conv1d(x.transpose(1, 2), weight, bias, padding=size // 2).transpose(1, 2)
    padded = F.pad(x, (0, 0, size // 2, size // 2))
    shifted = torch.cat([padded[:, k : k + frames] for k in range(size)], dim=-1)
    return F.linear(shifted, weight.permute(0, 2, 1).reshape(len(weight), -1), bias)


class GatedMLP(nn.Module):
    """w2(SiLU(w1 x) * w3 x), bias-free; Linear, or convolutions along time with `kernel_size` (ConvMLP)."""

    def __init__(self, dim: int, inner_dim: int, kernel_size: int | None = None) -> None:
        super().__init__()
        self.w1 = _projection(dim, inner_dim, kernel_size)
        self.w2 = _projection(inner_dim, dim, kernel_size)
        self.w3 = _projection(dim, inner_dim, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


def _projection(dim_in: int, dim_out: int, kernel_size: int | None) -> nn.Module:
    if kernel_size is None:
        return nn.Linear(dim_in, dim_out, bias=False)
    return ChannelLastConv1d(dim_in, dim_out, kernel_size, bias=False)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis with a learned gain and an explicit epsilon."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class QKV(NamedTuple):
    """Queries, keys and values, (B, heads, N, head_dim) each."""

    q: Tensor
    k: Tensor
    v: Tensor


class SelfAttention(nn.Module):
    """Query/key/value projection; output channel = (head * head_dim + d) * 3 + {0: q, 1: k, 2: v}."""

    def __init__(self, dim: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(head_dim, eps)
        self.k_norm = RMSNorm(head_dim, eps)

    def project(self, x: Tensor, table: Rotary | None) -> QKV:
        """Normalised and, with a table, rotated queries and keys; plain values."""
        batch, frames, dim = x.shape
        qkv = self.qkv(x).reshape(batch, frames, dim // self.head_dim, self.head_dim, 3).permute(4, 0, 2, 1, 3)
        q, k, v = self.q_norm(qkv[0]), self.k_norm(qkv[1]), qkv[2]
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return QKV(q, k, v)


def attend(qkv: QKV) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over all tokens, heads merged: (B, N, dim)."""
    out = attention(*qkv)
    return out.transpose(1, 2).flatten(2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift, LayerNorm without affine parameters, eps 1e-5."""
    return F.layer_norm(x, (x.shape[-1],), eps=1e-5) * (1 + scale) + shift


class StreamBlock(nn.Module):
    """One modality's half of an attention block, modulated by a condition (B, 1, dim) or (B, N, dim).

    `pre_only` streams give queries, keys and values but are not updated themselves. Streams ordered in time mix their
    neighbours with kernels of `kernel_size`; text has none.
    """

    def __init__(self, config: MMAudioConfig, *, kernel_size: int | None, pre_only: bool = False) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.pre_only = pre_only
        self.attn = SelfAttention(dim, config.head_dim, config.rms_norm_eps)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, (2 if pre_only else 6) * dim))
        if not pre_only:
            self.linear1 = nn.Linear(dim, dim) if kernel_size is None else ChannelLastConv1d(dim, dim, kernel_size)
            self.ffn = GatedMLP(dim, config.mlp_dim, kernel_size if config.mlp == "conv" else None)

    def pre(self, x: Tensor, condition: Tensor, table: Rotary | None) -> tuple[QKV, tuple[Tensor, ...]]:
        """Projections of the modulated stream, and what is left of the modulation for `post`."""
        shift, scale, *rest = self.adaLN_modulation(condition).chunk(2 if self.pre_only else 6, dim=-1)
        return self.attn.project(modulate(x, shift, scale), table), tuple(rest)

    def post(self, x: Tensor, attended: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        """x + gate1 linear1(a), then + gate2 ffn(modulated); a pre-only stream returns x unchanged."""
        if self.pre_only:
            return x
        gate1, shift2, scale2, gate2 = rest
        x = x + gate1 * self.linear1(attended)
        return x + gate2 * self.ffn(modulate(x, shift2, scale2))


class FusedBlock(StreamBlock):
    """A block on the sound stream alone."""

    def __init__(self, config: MMAudioConfig) -> None:
        super().__init__(config, kernel_size=3)

    def forward(self, x: Tensor, condition: Tensor, table: Rotary | None) -> Tensor:
        qkv, rest = self.pre(x, condition, table)
        return self.post(x, attend(qkv), rest)


class JointBlock(nn.Module):
    """Sound, image and text attend jointly; tokens are concatenated in that order. Text tokens are not rotated."""

    def __init__(self, config: MMAudioConfig, *, pre_only: bool) -> None:
        super().__init__()
        self.latent_block = StreamBlock(config, kernel_size=3)
        self.clip_block = StreamBlock(config, kernel_size=3, pre_only=pre_only)
        self.text_block = StreamBlock(config, kernel_size=None, pre_only=pre_only)

    def forward(
        self,
        x: Tensor,
        clip: Tensor,
        text: Tensor,
        per_token: Tensor,
        pooled: Tensor,
        latent_table: Rotary | None,
        clip_table: Rotary | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_qkv, x_rest = self.latent_block.pre(x, per_token, latent_table)
        clip_qkv, clip_rest = self.clip_block.pre(clip, pooled, clip_table)
        text_qkv, text_rest = self.text_block.pre(text, pooled, None)
        joint = QKV(*(torch.cat(parts, dim=2) for parts in zip(x_qkv, clip_qkv, text_qkv, strict=True)))
        a, a_clip, a_text = attend(joint).split([x.shape[1], clip.shape[1], text.shape[1]], dim=1)
        return (
            self.latent_block.post(x, a, x_rest),
            self.clip_block.post(clip, a_clip, clip_rest),
            self.text_block.post(text, a_text, text_rest),
        )


class FinalLayer(nn.Module):
    """conv_7(LN(x) (1 + scale) + shift), modulated by the pooled condition as the released networks are."""

    def __init__(self, config: MMAudioConfig) -> None:
        super().__init__()
        dim = config.hidden_dim
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.conv = ChannelLastConv1d(dim, config.latent_channels, 7)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(pooled).chunk(2, dim=-1)
        out: Tensor = self.conv(modulate(x, shift, scale))
        return out
