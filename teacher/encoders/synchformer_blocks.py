"""Parts of Synchformer (arXiv 2401.16423): attention within lines or frames, the layer that pools a group of tokens.

Modules are named as in the published state dict, so that weights load without a table of names.
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


def attend(
    q: Float[Tensor, "*batch queries width"],
    k: Float[Tensor, "*batch keys width"],
    v: Float[Tensor, "*batch keys width"],
    heads: int,
) -> Float[Tensor, "*batch queries width"]:
    """softmax(q k^T / sqrt(width / heads)) v in each head; a head is a contiguous run of channels."""
    batch = q.shape[:-2]
    # The fused kernels want exactly one leading dimension besides the heads.
    q, k, v = (rearrange(x.flatten(0, -3), "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return rearrange(mixed, "b h n d -> b n (h d)").unflatten(0, batch)


class GroupedAttention(nn.Module):
    """Half of divided space-time attention (TimeSformer, arXiv 2102.05095; MotionFormer, arXiv 2106.05392).

    Tokens are [class, (slot 0, patch 0), (slot 0, patch 1), ...]. The class token attends to all tokens. Every other
    token attends to the class token and to its group: over "time" the same patch in all slots, over "space" all
    patches of its slot.
    """

    def __init__(self, width: int, heads: int, slots: int, over: Literal["time", "space"]) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads
        self.slots = slots
        self.grouped = "b p t d" if over == "time" else "b t p d"

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        whole = attend(q[:, :1], k, v, self.heads)
        groups = attend(self._groups(q), self._with_class(k), self._with_class(v), self.heads)
        rest = rearrange(groups, f"{self.grouped} -> b (t p) d")
        return self.proj(torch.cat((whole, rest), dim=1))

    def _groups(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch groups members width"]:
        return rearrange(x[:, 1:], f"b (t p) d -> {self.grouped}", t=self.slots)

    def _with_class(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch groups members+1 width"]:
        groups = self._groups(x)
        return torch.cat((x[:, None, :1].expand(-1, groups.shape[1], -1, -1), groups), dim=2)


class Mlp(nn.Module):
    """fc2(GELU(fc1 x)) with the exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.fc2(functional.gelu(self.fc1(x)))


class DividedBlock(nn.Module):
    """x += time attention(norm3 x); x += space attention(norm1 x); x += mlp(norm2 x)."""

    def __init__(self, width: int, heads: int, hidden: int, slots: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = GroupedAttention(width, heads, slots, over="space")
        self.timeattn = GroupedAttention(width, heads, slots, over="time")
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden)
        self.norm3 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        x = x + self.timeattn(self.norm3(x))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PackedAttention(nn.Module):
    """Self-attention whose three input projections are one matrix, under the names of torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.heads = heads
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(
        self, query: Float[Tensor, "batch queries width"], tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch queries width"]:
        width = query.shape[-1]
        weights, biases = self.in_proj_weight.split([width, 2 * width]), self.in_proj_bias.split([width, 2 * width])
        q = functional.linear(query, weights[0], biases[0])
        k, v = functional.linear(tokens, weights[1], biases[1]).chunk(2, dim=-1)
        return self.out_proj(attend(q, k, v, self.heads))


class TokenPool(nn.Module):
    """One pre-norm transformer layer over [class, tokens]; its class token stands for the group.

    With x = [class, tokens] and y = x + attention(norm1 x), the result is the first row of y + mlp(norm2 y). Nothing
    else of the layer's output is used, so only that row is computed.
    """

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.self_attn = PackedAttention(width, heads)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width"]:
        first = self.cls_token.expand(len(tokens), -1, -1)
        normed = self.norm1(torch.cat((first, tokens), dim=1))
        y = first + self.self_attn(normed[:, :1], normed)
        return (y + self.linear2(functional.gelu(self.linear1(self.norm2(y)))))[:, 0]
