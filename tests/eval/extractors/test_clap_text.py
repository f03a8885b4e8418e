"""Captions of the CLAP models: recorded towers, padding, positions, tokens, and vocabularies that do not fit."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from eval.extractors.clap import CLAP_MS_2023, Clap
from eval.extractors.clap_text import (
    GPT2,
    ROBERTA,
    CaptionTokenizer,
    Gpt2Tower,
    RobertaTower,
    TextConfig,
    last_token,
)
from teacher.files.errors import WeightsError
from tests.golden.recipe import recipe_tensor
from tests.rounding import two_ways

MERGES = [("o", "g"), ("d", "og"), ("Ġ", "dog"), ("a", "r"), ("!", "!")]
LEARNED = ["".join(pair) for pair in MERGES]
ROBERTA_SIZE = 4 + 256 + len(MERGES) + 1
GPT2_SIZE = 256 + len(MERGES) + 1


def small_text(vocabulary: int) -> TextConfig:
    return TextConfig(vocabulary=vocabulary, positions=79, width=24, depth=2, heads=3, hidden=40)


def vocabulary_folder(folder: Path, first: tuple[str, ...], last: str) -> Path:
    """A byte alphabet and five merges in the layout of the published files."""
    signs = [sign for sign in sorted(ByteLevel.alphabet()) if sign not in first]
    tokens = [*first, *signs, *LEARNED, last]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokens")
    return {
        "roberta": vocabulary_folder(root / "roberta", ROBERTA.first, ROBERTA.last),
        "gpt2": vocabulary_folder(root / "gpt2", GPT2.first, GPT2.last),
    }


def recipe(state: Mapping[str, torch.Tensor], half_range: float = 0.3) -> dict[str, torch.Tensor]:
    """Tensors of the same names and shapes: uniform by name, around one for the gains of norms and for variances."""
    return {
        name: recipe_tensor("clap", name, list(tensor.shape), half_range, float(is_gain(name)))
        for name, tensor in state.items()
    }


def is_gain(name: str) -> bool:
    part = name.lower()
    return ("norm" in part or ".ln_" in part or part.startswith("ln_") or "bn0" in part) and (
        part.endswith(("weight", "running_var"))
    )


# Text towers. The numbers were recorded from networks of our own of these sizes and weights, which transformers 5.23.0
# on torch 2.13 reproduced; at the published sizes with random weights both agreed to 6e-6.


def some_tokens(vocabulary: int, pad: int) -> torch.Tensor:
    """Two captions of 77 and of 20 tokens, the second padded."""
    tokens = (torch.arange(2 * 77).reshape(2, 77) * 37 + 11) % (vocabulary - 4) + 4
    tokens[1, 20:] = pad
    return tokens


def tower(kind: type[RobertaTower] | type[Gpt2Tower], size: int) -> RobertaTower | Gpt2Tower:
    made = kind(small_text(size)).eval().requires_grad_(False)
    made.base.load_state_dict(recipe(made.base.state_dict()))
    return made


def test_recorded_roberta():
    made = tower(RobertaTower, ROBERTA_SIZE)(some_tokens(ROBERTA_SIZE, 1))
    assert made.shape == (2, 24)
    recorded = [
        [0.08854610472917557, -0.9351289868354797, -0.7565604448318481, -0.7485564947128296, 0.17137449979782104,
         0.22909656167030334],
        [-0.4144914448261261, -0.7398194074630737, -0.6919654011726379, -0.09760207682847977, 0.571846067905426,
         0.41839930415153503],
    ]  # fmt: skip
    for row, values in zip(made, recorded, strict=True):
        assert row[:6].tolist() == pytest.approx(values, abs=2e-6)


def test_recorded_gpt2():
    """The state at the last token other than padding: place 76 of the full caption, 19 of that of 20 tokens."""
    made = tower(Gpt2Tower, GPT2_SIZE)(some_tokens(GPT2_SIZE, 0))
    assert made.shape == (2, 24)
    recorded = [
        [-0.4236445426940918, -0.045951299369335175, 0.3557491898536682, -0.6641294956207275, 0.5397531986236572,
         -1.3402835130691528],
        [-0.6777498722076416, -1.6006284952163696, 0.4972645938396454, -0.3569274842739105, 0.4105643332004547,
         -0.5160886645317078],
    ]  # fmt: skip
    for row, values in zip(made, recorded, strict=True):
        assert row[:6].tolist() == pytest.approx(values, abs=4e-6)


def test_padding_does_not_change_a_caption():
    """Tokens followed by padding up to 77 give what they give alone, but for the order of sums.

    Six sums a block (queries to values, scores, their mean, output, two of the MLP), the longest over 40 hidden units.
    """
    close = {"atol": two_ways(2 * 6, 40, 3.0), "rtol": 0}  # values reach 3; 5e-5
    for kind, size, pad in ((RobertaTower, ROBERTA_SIZE, 1), (Gpt2Tower, GPT2_SIZE, 0)):
        tokens, made = some_tokens(size, pad)[1:], tower(kind, size)
        torch.testing.assert_close(made(tokens), made(tokens[:, :20]), **close)
        assert (made(tokens[:, :20]) - made(tokens[:, :19])).abs().max() > 1e-3


def test_positions_of_roberta_begin_behind_that_of_padding():
    """The rows of positions that are not 2 ... n + 1 may hold anything."""
    roberta = tower(RobertaTower, ROBERTA_SIZE)
    tokens = some_tokens(ROBERTA_SIZE, 1)[1:, :20]
    before = roberta(tokens)
    table = roberta.base.embeddings.position_embeddings.weight
    table[:2, 0], table[22:, 0] = 7.0, 7.0  # one channel: a norm does not see what all share
    assert torch.equal(roberta(tokens), before)
    table[21, 0] += 1.0
    assert (roberta(tokens) - before).abs().max() > 1e-3


# Tokens


def test_roberta_captions_are_framed_and_padded(folders):
    made = CaptionTokenizer.roberta(folders["roberta"], size=ROBERTA_SIZE)(["dog dogar", "x" * 100])
    numbers = json.loads((folders["roberta"] / "vocab.json").read_text())
    words = [numbers[token] for token in ("dog", "Ġdog", "ar")]
    assert made[0].tolist() == [0, *words, 2] + [1] * 72  # <s> ... </s> <pad>
    assert made[1].tolist() == [0] + [numbers["x"]] * 75 + [2]  # cut, but the end stays


def test_gpt2_captions_end_and_exclamation_marks_are_padding(folders):
    """Checked against transformers' GPT-2 tokeniser with the published files, "!" declared to be its padding."""
    tokens = CaptionTokenizer.gpt2(folders["gpt2"], size=GPT2_SIZE)
    numbers = json.loads((folders["gpt2"] / "vocab.json").read_text())
    dog, space, end = numbers["dog"], numbers["Ġ"], numbers["<|endoftext|>"]
    made = tokens(["dog dog", "dog!! !", "x" * 100])
    assert numbers["!"] == 0
    assert made[0].tolist() == [dog, numbers["Ġdog"], space, end] + [0] * 73
    assert made[1].tolist() == [dog, 0, 0, space, 0, space, end] + [0] * 70  # "!!" is a token that nothing becomes
    assert made[2].tolist() == [numbers["x"]] * 77  # its end is cut off
    # Place 3 is the end; three "!" before the end at place 6 move what is read to place 3; 76 is the last of 77.
    assert last_token(made).tolist() == [3, 3, 76]


def test_captions_must_be_texts(folders):
    tokens = CaptionTokenizer.roberta(folders["roberta"], size=ROBERTA_SIZE)
    for captions, message in (("a dog", "a list"), ([], "a list"), (["dog", " \n"], "caption 1"), ([3], "caption 0")):
        with pytest.raises(ValueError, match=message):
            tokens(captions)


def test_absent_vocabulary_says_what_to_fetch(tmp_path, folders):
    with pytest.raises(
        WeightsError, match=r"lacks vocab.json and merges.txt: fetch https://\S+roberta-base\S+"
    ) as caught:
        CaptionTokenizer.roberta(tmp_path, size=ROBERTA_SIZE)
    assert "\n" not in str(caught.value)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"lacks merges.txt: fetch https://\S+gpt2/\S+"):
        Clap.load(tmp_path / "absent.pth", CLAP_MS_2023, tokenizer=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, m: (v, m + "Ġ zebra\n"), r"merges.txt does not belong to its vocab.json, which lacks: Ġ zebra"),
        (lambda v, m: (v[:-5], m), "damaged"),
        (lambda v, m: ('["a"]', m), "not a vocabulary"),
        (lambda v, m: (v.replace('"dog"', '"cat"'), m), "which lacks: d og, Ġ dog"),
        (lambda v, m: (v.replace('"<s>"', '"<t>"'), m), "<s> must be 0"),
        (lambda v, m: (v.replace('"x"', '"xx"'), m), r"lacks 1 of the 256 signs for single bytes: x"),
    ],
)
def test_damaged_vocabularies_are_refused(tmp_path, folders, change, message):
    texts = change(*((folders["roberta"] / name).read_text() for name in ("vocab.json", "merges.txt")))
    for name, text in zip(("vocab.json", "merges.txt"), texts, strict=True):
        (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match=message) as caught:
        CaptionTokenizer.roberta(tmp_path, size=ROBERTA_SIZE)
    assert "\n" not in str(caught.value)


def test_the_other_models_vocabulary_is_refused(folders):
    with pytest.raises(WeightsError, match=r"not that of roberta-base: .* tokens 0 to 265, it holds 262"):
        CaptionTokenizer.roberta(folders["gpt2"], size=ROBERTA_SIZE)
    with pytest.raises(WeightsError, match=r"not that of gpt2: ! must be 0, <\|endoftext\|> must be 265"):
        CaptionTokenizer.gpt2(folders["roberta"], size=ROBERTA_SIZE)
