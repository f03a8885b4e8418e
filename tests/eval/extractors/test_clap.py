"""LAION-CLAP and MS-CLAP 2023: published layouts, formulas, lengths, batches, and files that do not fit."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from eval.extractors.base import EmbeddingModel
from eval.extractors.clap import CLAP_LAION, CLAP_MS_2023, Clap, ClapNetwork, ClapSpec
from eval.extractors.clap_audio import HtsatConfig, LogMelConfig, front_end_tensors, laion_length, ms_length
from eval.extractors.clap_text import GPT2, GPT2_SMALL, ROBERTA, ROBERTA_BASE, CaptionTokenizer, TextConfig
from teacher.files import file_digest
from teacher.files.errors import WeightsError
from tests.eval.extractors.test_clap_audio import layout
from tests.eval.extractors.test_clap_text import GPT2_SIZE, ROBERTA_SIZE, recipe, small_text, vocabulary_folder

SMALL_AUDIO = HtsatConfig(
    mel=LogMelConfig(sample_rate=16_000, n_fft=256, hop_length=80, num_mels=16, fmax_hz=(8000.0,)),
    embed_dim=8, depths=(1, 1), heads=(2, 4), image=64, classes=5,
)  # fmt: skip
SAMPLES = 20_000
"""251 frames of 256."""


SMALL_LAION = replace(CLAP_LAION, audio=SMALL_AUDIO, text=small_text(ROBERTA_SIZE), joint=12, samples=SAMPLES)
SMALL_MS = replace(CLAP_MS_2023, audio=SMALL_AUDIO, text=small_text(GPT2_SIZE), joint=12, samples=SAMPLES)
SMALL = {"laion": SMALL_LAION, "ms": SMALL_MS}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokens")
    return {
        "roberta": vocabulary_folder(root / "roberta", ROBERTA.first, ROBERTA.last),
        "gpt2": vocabulary_folder(root / "gpt2", GPT2.first, GPT2.last),
    }


CONSTANTS = ("index", "tracked", "attn_mask", "conv_real.weight", "conv_imag.weight", "melW")
"""Ends of the published names whose values are not free."""


def tensors_of(which: str) -> dict[str, torch.Tensor]:
    """A small checkpoint with the published names, which may be changed: constants as they must be, the rest by
    recipe."""
    network = ClapNetwork(SMALL[which])
    network.audio.load_state_dict(front_end_tensors(SMALL_AUDIO), strict=False)
    state = network.state_dict()
    whole = {name: torch.cat([state[own] for own in parts]) if len(parts) > 1 else state[parts[0]]
             for name, parts in network.official_names().items()}  # fmt: skip
    return recipe(whole) | {name: tensor.clone() for name, tensor in whole.items() if name.endswith(CONSTANTS)}


def laion_file(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / CLAP_LAION.official.file
    torch.save({"epoch": 15, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    return path


def ms_file(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path = folder / CLAP_MS_2023.official.file
    torch.save({"model": tensors}, path)
    return path


def load(folder: Path, folders: dict[str, Path], which: str, tensors: dict[str, torch.Tensor]) -> Clap:
    path = laion_file(folder, tensors) if which == "laion" else ms_file(folder, tensors)
    tokenizer = folders["roberta" if which == "laion" else "gpt2"]
    return Clap.load(path, SMALL[which], tokenizer=tokenizer)


@pytest.fixture(scope="module")
def models(folders, tmp_path_factory) -> dict[str, Clap]:
    return {which: load(tmp_path_factory.mktemp(which), folders, which, tensors_of(which)) for which in SMALL}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Layout


def affine(name: str, outer: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def roberta_layout() -> dict[str, tuple[int, ...]]:
    """199 tensors: five of embeddings, sixteen of each of twelve layers, two of the pooler."""
    w, at = 768, "text_branch.embeddings"
    made: dict[str, tuple[int, ...]] = {
        f"{at}.word_embeddings.weight": (50_265, w), f"{at}.position_embeddings.weight": (514, w),
        f"{at}.token_type_embeddings.weight": (1, w), **norm(f"{at}.LayerNorm", w),
    }  # fmt: skip
    for k in range(12):
        at = f"text_branch.encoder.layer.{k}"
        for name in ("query", "key", "value"):
            made |= affine(f"{at}.attention.self.{name}", w, w)
        made |= affine(f"{at}.attention.output.dense", w, w) | norm(f"{at}.attention.output.LayerNorm", w)
        made |= affine(f"{at}.intermediate.dense", 4 * w, w)
        made |= affine(f"{at}.output.dense", w, 4 * w) | norm(f"{at}.output.LayerNorm", w)
    return made | affine("text_branch.pooler.dense", w, w)


def gpt2_layout() -> dict[str, tuple[int, ...]]:
    """148 tensors: two tables, twelve of each of twelve layers (weights lie inner by outer), a last norm."""
    w, base = 768, "caption_encoder.base"
    made: dict[str, tuple[int, ...]] = {f"{base}.wte.weight": (50_257, w), f"{base}.wpe.weight": (1024, w)}
    for k in range(12):
        at = f"{base}.h.{k}"
        made |= norm(f"{at}.ln_1", w) | norm(f"{at}.ln_2", w)
        for name, inner, outer in (
            ("attn.c_attn", w, 3 * w), ("attn.c_proj", w, w), ("mlp.c_fc", w, 4 * w), ("mlp.c_proj", 4 * w, w)
        ):  # fmt: skip
            made |= {f"{at}.{name}.weight": (inner, outer), f"{at}.{name}.bias": (outer,)}
    return made | norm(f"{base}.ln_f", w)


def made_layout(spec: ClapSpec) -> dict[str, tuple[int, ...]]:
    """Published names and shapes that a network wants: query, key and value lie in one tensor."""
    with torch.device("meta"):
        network = ClapNetwork(spec)
    state = network.state_dict()
    return {
        name: (len(parts) * state[parts[0]].shape[0], *state[parts[0]].shape[1:]) if state[parts[0]].ndim else ()
        for name, parts in network.official_names().items()
    }


def test_laion_layout_is_the_published_one():
    heads: dict[str, tuple[int, ...]] = {"logit_scale_a": (), "logit_scale_t": ()}
    for side, width in (("audio", 1024), ("text", 768)):
        heads |= affine(f"{side}_projection.0", 512, width) | affine(f"{side}_projection.2", 512, 512)
        heads |= affine(f"{side}_transform.sequential.0", 512, 512) | affine(f"{side}_transform.sequential.3", 512, 512)
    audio = {f"audio_branch.{name}": shape for name, shape in layout(128, (2, 2, 12, 2)).items()}
    text = roberta_layout()
    assert made_layout(CLAP_LAION) == audio | text | heads
    assert (len(audio), len(text), len(heads)) == (287, 199, 18)  # 504 together
    # Everything in the file: 72.92 M of sound (1.58 M of them constants), 124.65 M of text, 2.49 M of heads.
    sizes = [sum(math.prod(shape) for shape in part.values()) for part in (audio, text, heads)]
    assert sizes == [72_924_376, 124_645_632, 2_494_466]
    assert sum(sizes) == 200_064_474


def test_ms_layout_is_the_published_one():
    heads: dict[str, tuple[int, ...]] = {"logit_scale": ()}
    for side in ("audio", "caption"):
        at = f"{side}_encoder.projection"
        heads |= {f"{at}.linear1.weight": (1024, 768), f"{at}.linear2.weight": (1024, 1024)}
        heads |= norm(f"{at}.layer_norm", 1024)
    audio = {f"audio_encoder.base.htsat.{name}": shape for name, shape in layout(96, (2, 2, 6, 2)).items()}
    text = gpt2_layout()
    assert made_layout(CLAP_MS_2023) == audio | text | heads
    assert (len(audio), len(text), len(heads)) == (200, 148, 9)  # 357 together
    sizes = [sum(math.prod(shape) for shape in part.values()) for part in (audio, text, heads)]
    assert sizes == [31_751_256, 124_439_808, 3_674_113]
    assert sum(sizes) == 159_865_177


# Embeddings


@pytest.mark.parametrize("which", ["laion", "ms"])
def test_rows_are_unit_vectors_by_the_formula(models, which):
    model = models[which]
    waves, captions = draw(2, 15_000), ["dog", "a dog barks"]
    made, text = model.embed(waves), model.embed_text(captions)
    tensors, tokens = tensors_of(which), model.tokens(captions)
    fit = {"laion": laion_length, "ms": ms_length}[which]
    sound_rows = model.network.audio(fit(waves, samples=SAMPLES))
    if which == "laion":
        read = model.network.text(tokens)

        def project(x, side):
            part = {k: tensors[f"{side}_projection.{k}"] for k in ("0.weight", "0.bias", "2.weight", "2.bias")}
            return functional.relu(x @ part["0.weight"].T + part["0.bias"]) @ part["2.weight"].T + part["2.bias"]
    else:
        states = model.network.text.base(input_ids=tokens).last_hidden_state
        end = model.tokens.encoder.token_to_id("<|endoftext|>")
        read = states[tokens == end]  # no "!" in these captions

        def project(x, side):
            at = f"{ {'audio': 'audio', 'text': 'caption'}[side] }_encoder.projection."
            a = x @ tensors[at + "linear1.weight"].T
            b = a + (0.5 * a * (1 + torch.erf(a / math.sqrt(2)))) @ tensors[at + "linear2.weight"].T
            b = (b - b.mean(1, keepdim=True)) / (b.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
            return b * tensors[at + "layer_norm.weight"] + tensors[at + "layer_norm.bias"]

    for rows, expected in ((made.rows, project(sound_rows, "audio")), (text, project(read, "text"))):
        assert rows.shape == (2, 12)
        torch.testing.assert_close(rows, expected / expected.norm(dim=1, keepdim=True), atol=3e-6, rtol=0)
        assert (rows[0] - rows[1]).abs().max() > 1e-3
    assert made.counts == (1, 1)
    assert made.logits is None


@pytest.mark.parametrize("which", ["laion", "ms"])
def test_neither_batch_nor_order_matters(models, which, monkeypatch):
    module = "eval.extractors.clap"
    monkeypatch.setattr(f"{module}.CLIPS_AT_ONCE", 2)
    monkeypatch.setattr(f"{module}.CAPTIONS_AT_ONCE", 2)
    model = models[which]
    waves, captions = draw(3, 25_000), ["dog", "a dog barks! at another dog", "rain"]  # longer than the window
    sound_rows, read = model.embed(waves).rows, model.embed_text(captions)
    turned = model.embed(waves.flip(0)).rows.flip(0), model.embed_text(captions[::-1]).flip(0)
    torch.testing.assert_close((sound_rows, read), turned, atol=2e-6, rtol=0)
    for k in range(3):
        torch.testing.assert_close(sound_rows[k : k + 1], model.embed(waves[k : k + 1]).rows, atol=2e-6, rtol=0)
        torch.testing.assert_close(read[k : k + 1], model.embed_text(captions[k : k + 1]), atol=2e-6, rtol=0)


def test_short_clips_are_followed_by_silence_or_repeated(models):
    wave = draw(1, 12_000)
    silence, again = torch.cat((wave, torch.zeros(1, 8000)), 1), torch.cat((wave, wave[:, :8000]), 1)
    for which, same, other in (("laion", silence, again), ("ms", again, silence)):
        made = models[which].embed(wave).rows
        assert torch.equal(made, models[which].embed(same).rows)
        assert (made - models[which].embed(other).rows).abs().max() > 1e-3


@pytest.mark.parametrize("which", ["laion", "ms"])
def test_waves_that_do_not_fit_are_refused(models, which):
    for waves, message in (
        (torch.zeros(100), r"CLAP needs waves \(clips, samples\)"),
        (torch.zeros(1, 0), "at least"),
        (torch.full((1, 100), float("inf")), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            models[which].embed(waves)


# Files


@pytest.mark.parametrize(("which", "start"), [("laion", "clap-laion-music-speech-v1"), ("ms", "clap-ms-2023-v1")])
def test_name_holds_the_digests_of_weights_and_vocabulary(models, folders, tmp_path, which, start):
    model: EmbeddingModel = models[which]
    both = CaptionTokenizer.roberta(folders["roberta"], size=ROBERTA_SIZE).digest
    both = both if which == "laion" else CaptionTokenizer.gpt2(folders["gpt2"], size=GPT2_SIZE).digest
    assert model.name == f"{start}@16000:{file_digest(models[which].loaded.path)}-{both}"
    assert (model.sample_rate, model.dimensions) == (16_000, 12)
    kind, published = ("roberta", ROBERTA) if which == "laion" else ("gpt2", GPT2)
    other = vocabulary_folder(tmp_path / "other", published.first, published.last)
    (other / "merges.txt").write_text("#version: 0.2\no g\n")
    changed = load(tmp_path, folders | {kind: other}, which, tensors_of(which))
    assert changed.name != model.name
    assert not changed.tokens.published


def test_what_old_transformers_kept_in_the_files_is_left_out(models, folders, tmp_path):
    extra = {"text_branch.embeddings.position_ids": torch.arange(79)[None]}
    made = load(tmp_path, folders, "laion", tensors_of("laion") | extra)
    assert torch.equal(made.embed_text(["dog"]), models["laion"].embed_text(["dog"]))
    for k in range(2):
        extra[f"caption_encoder.base.h.{k}.attn.bias"] = torch.ones(1, 1, 79, 79, dtype=torch.uint8).tril()
        extra[f"caption_encoder.base.h.{k}.attn.masked_bias"] = torch.tensor(-1e4)
    del extra["text_branch.embeddings.position_ids"]
    made = load(tmp_path, folders, "ms", tensors_of("ms") | extra)
    assert torch.equal(made.embed_text(["dog"]), models["ms"].embed_text(["dog"]))


def test_logit_scale_is_an_exponential(folders, tmp_path):
    made = load(tmp_path, folders, "ms", tensors_of("ms") | {"logit_scale": torch.tensor(math.log(20.0))})
    assert made.logit_scale == pytest.approx(20.0, rel=1e-6)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("laion", lambda t: t.pop("text_branch.pooler.dense.bias"), r"1 missing \(text_branch.pooler.dense.bias\)"),
        ("laion", lambda t: t.update(other=torch.zeros(2)), r"1 unexpected \(other\)"),
        (
            "laion",
            lambda t: t.update({"audio_branch.patch_embed.proj.weight": torch.zeros(6, 1, 4, 4)}),
            r"\(6, 1, 4, 4\) instead of .*it holds an HTSAT of width 6, and this adapter takes an HTSAT of width 8",
        ),
        (
            "laion",
            lambda t: t.update({"audio_branch.patch_embed.fusion_model.local_att.0.weight": torch.zeros(1)}),
            "a file with fusion",
        ),
        ("laion", lambda t: t["audio_branch.logmel_extractor.melW"].mul_(1.1), "made for another network: .*melW"),
        ("ms", lambda t: t.pop("logit_scale"), r"1 missing \(logit_scale\)"),
        (
            "ms",
            lambda t: t.update({"caption_encoder.base.h.1.attn.c_attn.weight": torch.zeros(72, 24)}),
            r"\(72, 24\) instead of \(24, 72\)",
        ),
        ("ms", lambda t: t.update({"caption_encoder.base.encoder.layer.0.x": torch.zeros(1)}), "2022"),
        ("ms", lambda t: t.update({"clap.logit_scale": torch.zeros(())}), "clapcap"),
        ("ms", lambda t: t.update({"logit_scale": torch.tensor(float("nan"))}), "NaN"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, folders, which, change, message):
    tensors = tensors_of(which)
    change(tensors)
    with pytest.raises(WeightsError, match=message) as caught:
        load(tmp_path, folders, which, tensors)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tiny_in_place_of_base_is_called_by_its_name(tmp_path, folders):
    """The common mistake: a 630k file, HTSAT-tiny. Base is known by its width of 128."""
    spec = replace(CLAP_LAION, text=small_text(ROBERTA_SIZE))
    tensors = {"audio_branch.patch_embed.proj.weight": torch.zeros(96, 1, 4, 4)}
    with pytest.raises(WeightsError, match=r"it holds HTSAT-tiny, and this adapter takes HTSAT-base$"):
        Clap.load(laion_file(tmp_path, tensors), spec, tokenizer=folders["roberta"])


def test_wrong_sizes_are_refused():
    assert (ROBERTA_BASE.positions, GPT2_SMALL.positions) == (514, 1024)
    with pytest.raises(ValueError, match="heads must divide width 768, got 5"):
        TextConfig(vocabulary=10, positions=79, heads=5)
    with pytest.raises(ValueError, match="positions must be at least 79, got 77"):
        TextConfig(vocabulary=10, positions=77)
    with pytest.raises(ValueError, match="samples must give at most 1024 frames, got 600000"):
        replace(CLAP_LAION, samples=600_000)
    with pytest.raises(ValueError, match="joint must be positive"):
        replace(CLAP_MS_2023, joint=0)
