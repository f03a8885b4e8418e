"""Captions to the 77 tokens that the text towers of the CLAP models take.

Both use GPT-2's byte-level pair encoding: vocab.json and merges.txt of roberta-base (LAION-CLAP) or gpt2 (MS-CLAP), two
small files that are given in a folder and never downloaded. What the published code does is kept:

- LAION-CLAP: <s> caption </s>, the caption cut to 75 tokens, <pad> behind.
- MS-CLAP: the caption, a space and <|endoftext|>, cut to 77 tokens, so that a long caption loses its end token; "!"
  behind. Because "!" is declared to be the padding, every "!" in a caption becomes that same token 0, also where
  GPT-2 knows "!!" or " !" as one token.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Int
from torch import Tensor

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
    """What is known of the two files of a tokeniser."""

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
        """Raises ValueError for a single text in place of a list of them, an empty list, or a caption without words."""
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
