"""The text towers of the CLAP models: RoBERTa-base of LAION-CLAP and GPT-2 of MS-CLAP 2023.

RoBERTa (arXiv 1907.11692) attends both ways and normalises after each sum; its caption vector is tanh(W h_0 + b) of the
first position. GPT-2 (Radford et al. 2019) attends to the left and normalises before. Both are written here because
transformers' models import torchvision, and because non-persistent buffers of theirs get lost on the meta device; they
give the same numbers (recorded in the tests). Names and shapes are those under `text_branch.` of
music_speech_audioset_epoch_15_esc_89.98.pt and `caption_encoder.base.` of CLAP_weights_2023.pth. Captions become tokens
in `clap_tokens.py`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from eval.extractors.clap_tokens import CAPTION_TOKENS

ROBERTA_PAD = 1
"""Padding token of RoBERTa, and the position that padding has; positions of words begin one further."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of a text tower."""

    vocabulary: int
    """Tokens."""
    positions: int
    """Rows of the table of positions, of which RoBERTa leaves the first two to padding."""
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    """Width of the hidden layer of each MLP."""
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads must divide width {self.width}, got {self.heads}")
        if self.positions < CAPTION_TOKENS + 2:
            raise ValueError(f"positions must be at least {CAPTION_TOKENS + 2}, got {self.positions}")
        if min(self.vocabulary, self.depth, self.hidden) < 1:
            raise ValueError(
                f"vocabulary, depth and hidden must be positive, got {self.vocabulary}, {self.depth}, {self.hidden}"
            )


ROBERTA_BASE = TextConfig(vocabulary=50_265, positions=514)
"""124 645 632 parameters in 199 tensors."""
GPT2_SMALL = TextConfig(vocabulary=50_257, positions=1024)
"""124 439 808 parameters in 148 tensors."""


def attend_seen(q: Tensor, k: Tensor, v: Tensor, heads: int, seen: Bool[Tensor, "#batch #queries keys"]) -> Tensor:
    """softmax(q k^T / sqrt(width / heads)) v over the keys that are seen; a head is a contiguous run of channels."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None]).transpose(1, 2).flatten(2)


class Summed(nn.Module):
    """LayerNorm(residual + dense x)."""

    def __init__(self, inner: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dense(x))


class SelfAttention(nn.Module):
    """Attention with three matrices, before its output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.heads = heads

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        return attend_seen(self.query(x), self.key(x), self.value(x), self.heads, seen)


class RobertaAttention(nn.Module):
    """norm(x + attention(x))."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.self = SelfAttention(c.width, c.heads)
        self.output = Summed(c.width, c.width, c.eps)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        return self.output(self.self(x, seen), x)


class Dense(nn.Module):
    """A linear layer, one name deeper."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, outer)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class RobertaBlock(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + mlp(x)), GELU exact."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.attention = RobertaAttention(c)
        self.intermediate = Dense(c.width, c.hidden)
        self.output = Summed(c.hidden, c.width, c.eps)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.attention(x, seen)
        return self.output(functional.gelu(self.intermediate(x)), x)


class RobertaEmbeddings(nn.Module):
    """LayerNorm of word + position + the one token type."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(c.vocabulary, c.width)
        self.position_embeddings = nn.Embedding(c.positions, c.width)
        self.token_type_embeddings = nn.Embedding(1, c.width)
        self.LayerNorm = nn.LayerNorm(c.width, eps=c.eps)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        places = ROBERTA_PAD + seen.cumsum(1) * seen
        x = self.word_embeddings(tokens) + self.position_embeddings(places)
        return self.LayerNorm(x + self.token_type_embeddings.weight[0])


class Roberta(nn.Module):
    """RoBERTa without a language head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = RobertaEmbeddings(config)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(RobertaBlock(config) for _ in range(config.depth))})
        self.pooler = Dense(config.width, config.width)

    def forward(self, tokens: Int[Tensor, "captions tokens"]) -> Float[Tensor, "captions width"]:
        """tanh of the pooler's layer at the first position. Padding is neither seen nor counted."""
        seen = tokens != ROBERTA_PAD
        x = self.embeddings(tokens, seen)
        for block in self.encoder["layer"].children():
            x = block(x, seen[:, None])
        return torch.tanh(self.pooler(x[:, 0]))


class Transposed(nn.Module):
    """x W + b with W (inner, outer): a linear layer as GPT-2's files hold it."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(inner, outer))
        self.bias = nn.Parameter(torch.zeros(outer))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Gpt2Attention(nn.Module):
    """Attention with one matrix for query, key and value."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.heads = c.heads
        self.c_attn, self.c_proj = Transposed(c.width, 3 * c.width), Transposed(c.width, c.width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        return self.c_proj(attend_seen(q, k, v, self.heads, seen))


class Gpt2Mlp(nn.Module):
    """GELU by tanh between two layers."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Transposed(c.width, c.hidden), Transposed(c.hidden, c.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))


class Gpt2Block(nn.Module):
    """x += attn(ln_1 x); x += mlp(ln_2 x)."""

    def __init__(self, c: TextConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(c.width, eps=c.eps)
        self.attn = Gpt2Attention(c)
        self.ln_2 = nn.LayerNorm(c.width, eps=c.eps)
        self.mlp = Gpt2Mlp(c)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), seen)
        return x + self.mlp(self.ln_2(x))


class Gpt2(nn.Module):
    """GPT-2 without a language head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocabulary, config.width)
        self.wpe = nn.Embedding(config.positions, config.width)
        self.h = nn.ModuleList(Gpt2Block(config) for _ in range(config.depth))
        self.ln_f = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, tokens: Int[Tensor, "captions tokens"]) -> Float[Tensor, "captions tokens width"]:
        """All positions after the last norm; none depends on what stands right of it."""
        count = tokens.shape[1]
        seen = torch.ones(1, count, count, dtype=torch.bool, device=tokens.device).tril()
        x = self.wte(tokens) + self.wpe.weight[:count]
        for block in self.h:
            x = block(x, seen)
        return self.ln_f(x)
