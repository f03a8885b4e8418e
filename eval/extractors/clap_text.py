"""The text towers of the CLAP models: captions to 77 tokens, and RoBERTa-base or GPT-2 to one vector each.

Both models use GPT-2's byte-level pair encoding: vocab.json and merges.txt of roberta-base (LAION-CLAP) or gpt2
(MS-CLAP), two small files that are given in a folder and never downloaded. What the published code does is done here:

- LAION-CLAP: <s> caption </s>, the caption cut to 75 tokens, <pad> behind.
- MS-CLAP: the caption, a space and <|endoftext|>, cut to 77 tokens, so that a long caption loses its end token; "!"
  behind. Because "!" is declared to be the padding, every "!" in a caption becomes that same token 0, also where
  GPT-2 knows "!!" or " !" as one token.

RoBERTa (arXiv 1907.11692) attends both ways and normalises after each sum; a caption's vector is tanh(W h_0 + b) of the
first position. GPT-2 (Radford et al. 2019) attends to the left and normalises before; a caption's vector is that of its
last token. Both are transformers' networks, built from sizes alone, never downloaded; `transformers` is imported when a
tower is built. Names and shapes of their tensors are those under `text_branch.` of
music_speech_audioset_epoch_15_esc_89.98.pt and under `caption_encoder.base.` of CLAP_weights_2023.pth.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mf_mjt_torchvision import guard_torchvision
from teacher.files.components import few
from teacher.files.errors import WeightsError

CAPTION_TOKENS = 77
VOCABULARY, MERGES = "vocab.json", "merges.txt"
MS_END = " <|endoftext|>"
"""What MS-CLAP appends to a caption. The space becomes a token of its own."""
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
"""RoBERTa took over GPT-2's merges and numbered the tokens anew."""


@dataclass(frozen=True, kw_only=True)
class PublishedVocabulary:
    """The two published files of a tokeniser, and what they must hold."""

    model: str
    url: str
    """Of the folder."""
    vocab_sha256: str
    first: tuple[str, ...]
    """Tokens that have the numbers 0, 1, ..."""
    last: str
    """Token with the greatest number."""


ROBERTA = PublishedVocabulary(
    model="roberta-base",
    url="https://huggingface.co/FacebookAI/roberta-base/resolve/main",
    vocab_sha256="9e7f63c2d15d666b52e21d250d2e513b87c9b713cfa6987a82ed89e5e6e50655",
    first=("<s>", "<pad>", "</s>", "<unk>"),
    last="<mask>",
)
GPT2 = PublishedVocabulary(
    model="gpt2",
    url="https://huggingface.co/openai-community/gpt2/resolve/main",
    vocab_sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    first=("!",),
    last="<|endoftext|>",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionTokenizer:
    """Captions -> token numbers (captions, 77)."""

    encoder: Any
    """A `tokenizers.Tokenizer` that cuts and pads."""
    end: str
    """Appended to every caption as text."""
    digest: str
    """First 12 hexadecimal digits of the SHA-256 of both files, one behind the other."""
    published: bool
    """Whether both are the published files."""

    def __str__(self) -> str:
        known = "the published files" if self.published else "NOT the published files"
        return f"{VOCABULARY} and {MERGES} (sha256 {self.digest}..., {known})"

    @classmethod
    def roberta(cls, folder: Path, *, size: int) -> Self:
        """roberta-base's two files for LAION-CLAP; `size` is the number of tokens that the text tower knows.

        Raises:
            WeightsError: in one line, where a file is absent, damaged or of another tokeniser.
        """
        from tokenizers import AddedToken
        from tokenizers.processors import RobertaProcessing

        vocabulary, merges, digest, published = _read(folder, ROBERTA, size)
        encoder = _byte_pairs(vocabulary, merges)
        # <mask> takes the space before it along.
        encoder.add_special_tokens([*ROBERTA.first, AddedToken("<mask>", lstrip=True)])
        encoder.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
        encoder.enable_truncation(CAPTION_TOKENS)
        encoder.enable_padding(length=CAPTION_TOKENS, pad_id=1, pad_token="<pad>")
        return cls(encoder=encoder, end="", digest=digest, published=published)

    @classmethod
    def gpt2(cls, folder: Path, *, size: int) -> Self:
        """gpt2's two files for MS-CLAP 2023; otherwise as `roberta`."""
        vocabulary, merges, digest, published = _read(folder, GPT2, size)
        encoder = _byte_pairs(vocabulary, merges)
        encoder.add_special_tokens(["<|endoftext|>", "!"])
        encoder.enable_truncation(CAPTION_TOKENS)
        encoder.enable_padding(length=CAPTION_TOKENS, pad_id=0, pad_token="!")
        return cls(encoder=encoder, end=MS_END, digest=digest, published=published)

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "captions 77"]:
        """Raises ValueError for a single text in place of a list of them, an empty list, or an empty caption."""
        if isinstance(captions, str) or len(captions) == 0:
            raise ValueError(f"captions must be a list of at least one text, got {captions!r}")
        for number, caption in enumerate(captions):
            if not isinstance(caption, str) or not caption.strip():
                raise ValueError(f"captions must be texts with something in them, caption {number} is {caption!r}")
        return torch.tensor([self.encoder.encode(caption + self.end).ids for caption in captions])


def _byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    encoder = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    encoder.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
    return encoder


def _read(
    folder: Path, published: PublishedVocabulary, size: int
) -> tuple[dict[str, int], list[tuple[str, str]], str, bool]:
    """Vocabulary, merges, digest, and whether both files are the published ones."""
    paths = {name: folder / name for name in (VOCABULARY, MERGES)}
    absent = [name for name, path in paths.items() if not path.is_file()]
    if absent:
        raise WeightsError(
            f"{folder} lacks {' and '.join(absent)}: fetch {published.url}/{VOCABULARY} and {published.url}/{MERGES} "
            "into one folder and name that folder"
        )
    content = {name: path.read_bytes() for name, path in paths.items()}
    try:
        vocabulary = json.loads(content[VOCABULARY])
        lines = content[MERGES].decode().split("\n")
    except ValueError as error:
        raise WeightsError(f"{folder} holds a damaged {VOCABULARY} or {MERGES}: {error}") from error
    _check_vocabulary(paths[VOCABULARY], vocabulary, published, size)
    lines = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    unknown = [f"{a} {b}" for a, b in pairs if not (a in vocabulary and b in vocabulary and a + b in vocabulary)]
    if unknown:
        raise WeightsError(f"{paths[MERGES]} does not belong to its {VOCABULARY}, which lacks: {few(unknown)}")
    digests = {name: hashlib.sha256(value).hexdigest() for name, value in content.items()}
    both = hashlib.sha256(content[VOCABULARY] + content[MERGES]).hexdigest()[:12]
    known = digests == {VOCABULARY: published.vocab_sha256, MERGES: MERGES_SHA256}
    return vocabulary, pairs, both, known


def _check_vocabulary(path: Path, vocabulary: Any, published: PublishedVocabulary, size: int) -> None:
    if not isinstance(vocabulary, dict) or not all(isinstance(number, int) for number in vocabulary.values()):
        raise WeightsError(f"{path} is not a vocabulary: it must hold a number for each token")
    if sorted(vocabulary.values()) != list(range(size)):
        raise WeightsError(
            f"{path} is not that of {published.model}: the text tower wants tokens 0 to {size - 1}, it holds "
            f"{len(vocabulary)}"
        )
    special = {token: number for number, token in enumerate(published.first)} | {published.last: size - 1}
    wrong = [f"{token} must be {number}" for token, number in special.items() if vocabulary.get(token) != number]
    if wrong:
        raise WeightsError(f"{path} is not that of {published.model}: {few(wrong)}; its URL is {published.url}")

    from tokenizers.pre_tokenizers import ByteLevel

    lacking = [sign for sign in ByteLevel.alphabet() if sign not in vocabulary]
    if lacking:
        raise WeightsError(f"{path} lacks {len(lacking)} of the 256 signs for single bytes: {few(sorted(lacking))}")


ROBERTA_PAD = 1
"""Padding token of RoBERTa, and the position of padding; positions of other tokens begin one further."""


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


class RobertaTower(nn.Module):
    """RoBERTa without a language head: tokens to tanh of the pooler's layer at the first position."""

    def __init__(self, config: TextConfig) -> None:
        guard_torchvision()
        from transformers import RobertaConfig, RobertaModel

        super().__init__()
        c = config
        self.base = RobertaModel(
            RobertaConfig(
                vocab_size=c.vocabulary,
                max_position_embeddings=c.positions,
                hidden_size=c.width,
                num_hidden_layers=c.depth,
                num_attention_heads=c.heads,
                intermediate_size=c.hidden,
                hidden_act="gelu",
                layer_norm_eps=c.eps,
                type_vocab_size=1,
                pad_token_id=ROBERTA_PAD,
            )
        )
        # Buffers that no file holds: a network built on the meta device would be left without them.
        embeddings = self.base.embeddings
        embeddings.position_ids = torch.arange(c.positions, device="cpu")[None]
        embeddings.token_type_ids = torch.zeros(1, c.positions, dtype=torch.long, device="cpu")

    def forward(self, tokens: Int[Tensor, "captions tokens"]) -> Float[Tensor, "captions width"]:
        """Padding is not attended to and takes no position."""
        return self.base(input_ids=tokens, attention_mask=(tokens != ROBERTA_PAD).long()).pooler_output


class Gpt2Tower(nn.Module):
    """GPT-2 without a language head: tokens to the state after the last norm at `last_token`."""

    def __init__(self, config: TextConfig) -> None:
        guard_torchvision()
        from transformers import GPT2Config, GPT2Model

        super().__init__()
        c = config
        self.base = GPT2Model(
            GPT2Config(
                vocab_size=c.vocabulary,
                n_positions=c.positions,
                n_embd=c.width,
                n_layer=c.depth,
                n_head=c.heads,
                n_inner=c.hidden,
                activation_function="gelu_pytorch_tanh",
                layer_norm_epsilon=c.eps,
                use_cache=False,
            )
        )

    def forward(self, tokens: Int[Tensor, "captions tokens"]) -> Float[Tensor, "captions width"]:
        """No position depends on what stands right of it, so that padding needs no mask."""
        rows = torch.arange(len(tokens), device=tokens.device)
        return self.base(input_ids=tokens).last_hidden_state[rows, last_token(tokens)]


def last_token(tokens: Int[Tensor, "captions tokens"]) -> Int[Tensor, " captions"]:
    """Place of the last token of MS-CLAP's captions: the number of tokens other than 0, less one.

    This is how the published code finds it, and the embeddings of training were taken there. "!" is token 0 as well:
    each one in a caption moves the place one to the left of the end.
    """
    return (tokens != 0).sum(dim=1) - 1
