"""CLIP through open_clip: sizes, the 378 pixels that are looked at, unit features, what the text features are."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mf_mjt_torchvision import guard_torchvision
from teacher.encoders.clip import (
    PIXEL_MEAN,
    PIXEL_STD,
    ClipConfig,
    ClipImage,
    ClipText,
    build_clip,
    clip_tokenizer,
    image_features,
    load_clip,
    text_features,
)
from teacher.files.errors import WeightsError

SMALL = ClipConfig(
    embed_dim=24,
    image_width=16,
    image_layers=2,
    image_heads=2,
    image_hidden=20,
    text_width=12,
    text_layers=2,
    text_heads=3,
    text_hidden=20,
)
CAPTIONS = ["a dog barks", "rain", "", "a dog barks at the rain"]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    made = build_clip(SMALL).double().eval().requires_grad_(False)
    for p in made.parameters():  # open_clip starts positions near 0.01, at which nothing would show
        p.add_(0.2 * torch.randn(p.shape, dtype=torch.float64))
    return made


def frames(count: int, size: int = 384, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=g)


def test_sizes_are_those_of_the_published_model():
    guard_torchvision()
    import open_clip

    with torch.device("meta"):
        made = build_clip(ClipConfig())
        listed = json.loads(
            (Path(open_clip.__file__).parent / "model_configs" / "ViT-H-14-378-quickgelu.json").read_text()
        )
        theirs = open_clip.CLIP(**listed)
    assert {n: t.shape for n, t in made.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    # A layer of width w has 12 w^2 + 13 w. Text: words, positions, last norm, projection. Image: 729 + 1 positions,
    # class, two norms, patches of 14 x 14 x 3, projection. One number scales the logits.
    text = 24 * (12 * 1024**2 + 13 * 1024) + (49_408 + 77 + 2) * 1024 + 1024**2
    image = 32 * (12 * 1280**2 + 13 * 1280) + (730 + 1 + 4 + 588) * 1280 + 1280 * 1024
    assert sum(p.numel() for p in made.parameters()) == image + text + 1 == 986_714_881
    assert ClipConfig.from_tensors(made.state_dict()) == ClipConfig()
    for ours, other in zip(made.modules(), theirs.modules(), strict=True):
        assert type(ours) is type(other)  # QuickGELU among them
        assert getattr(ours, "num_heads", None) == getattr(other, "num_heads", None)


def test_upper_left_378_pixels_are_looked_at(net):
    pixels = frames(2)
    made = image_features(net, pixels)
    assert torch.equal(image_features(net, pixels[:, :, :378, :378].contiguous()), made)
    border = pixels.clone()
    border[:, :, 378:] = 0
    border[:, :, :, 378:] = 255
    assert torch.equal(image_features(net, border), made)
    inside = pixels.clone()
    inside[:, :, 377] = 0
    assert (image_features(net, inside) - made).abs().max() > 1e-6


def test_image_features_are_open_clips_of_normalised_pixels(net):
    pixels = frames(2, 378)
    mean, std = (torch.tensor(x, dtype=torch.float64)[None, :, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    made = image_features(net, pixels)
    torch.testing.assert_close(made, net.encode_image((pixels.double() / 255 - mean) / std, normalize=True))
    torch.testing.assert_close(made.norm(dim=1), torch.ones(2).double())


def test_encoders_do_not_depend_on_the_chunk(net):
    pixels = frames(3)
    image = ClipImage(name="random", net=net, chunk=2)(pixels)
    assert image.shape == (3, 24)
    assert image.dtype == torch.float32
    torch.testing.assert_close(ClipImage(name="random", net=net, chunk=8)(pixels.numpy()), image)
    text = ClipText(name="random", net=net, tokenizer=clip_tokenizer(), chunk=3)(CAPTIONS)
    assert text.shape == (4, 77, 12)
    assert text.dtype == torch.float32
    torch.testing.assert_close(ClipText(name="random", net=net, tokenizer=clip_tokenizer())(CAPTIONS), text)
    with pytest.raises(ValueError, match=r"\(T, 3, 384, 384\), got torch.uint8 \(3, 3, 378, 378\)"):
        ClipImage(name="random", net=net)(pixels[:, :, :378, :378])
    with pytest.raises(ValueError, match="list of strings, got one string"):
        ClipText(name="random", net=net, tokenizer=clip_tokenizer())("a dog")


def test_text_features_are_open_clips_before_pooling_and_projection(net):
    tokens = clip_tokenizer()(CAPTIONS)
    made = text_features(net, tokens)
    torch.testing.assert_close(made.norm(dim=2), torch.ones(4, 77).double())
    kept = []
    hook = net.ln_final.register_forward_hook(lambda _, __, output: kept.append(output))
    pooled = net.encode_text(tokens)
    hook.remove()
    torch.testing.assert_close(made, torch.nn.functional.normalize(kept[0], dim=-1))
    # open_clip pools at the end of the text, whose token has the largest number, and then projects.
    end = kept[0][torch.arange(4), tokens.argmax(1)]
    torch.testing.assert_close(end @ net.text_projection, pooled)


def test_text_position_sees_itself_and_those_before_it(net):
    tokenizer = clip_tokenizer()
    encoder = ClipText(name="random", net=net, tokenizer=tokenizer)
    made = encoder(CAPTIONS)
    shared = encoder.shared_positions
    assert shared == 1
    torch.testing.assert_close(made[:, :shared], made[:1, :shared].expand(4, -1, -1))
    assert (made[0, shared] - made[1, shared]).abs().max() > 1e-3
    # "a dog barks" and "a dog barks at the rain" share start, a, dog, bar, ks.
    torch.testing.assert_close(made[0, :5], made[3, :5])
    assert bool(((made[0] - made[3]).abs().amax(1)[5:] > 1e-4).all())  # padding knows what was said


def test_tokens_are_lower_case_zero_padded_and_cut():
    tokenizer = clip_tokenizer()
    tokens = tokenizer(["A Dog   BARKS", "a dog barks", "", "dog " * 100])
    assert tokens.shape == (4, 77)
    assert torch.equal(tokens[0], tokens[1])
    # The vocabulary's numbers of CLIP: 320 is "a", 1929 "dog"; the last two entries mark start and end.
    assert tokens[1, :3].tolist() == [49_406, 320, 1929]
    assert tokens[2].tolist() == [49_406, 49_407] + [0] * 75
    assert tokens[3].tolist() == [49_406] + [1929] * 75 + [49_407]


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    small = replace(SMALL, image_layers=1, text_layers=1)
    assert text_features(build_clip(small), clip_tokenizer()(["rain"])).shape == (1, 77, 12)


@pytest.fixture
def file(tmp_path) -> Path:
    torch.manual_seed(0)
    config = replace(SMALL, image_width=80, image_heads=1, text_width=64, text_heads=1, text_layers=1, image_layers=1)
    tensors = build_clip(config).state_dict()
    tensors["token_embedding.weight"] = tensors["token_embedding.weight"].half()
    save_file(tensors, tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors"


def changed(file: Path, change) -> Path:
    from teacher.files.components import read_tensors

    tensors = dict(read_tensors(file))
    change(tensors)
    save_file(tensors, file.with_name("other.safetensors"))
    return file.with_name("other.safetensors")


def test_loads_strictly_and_is_named_after_its_weights(file):
    image, text = load_clip(file)
    assert image.net is text.net
    assert not any(p.requires_grad or p.is_meta for p in image.net.parameters())
    assert image(np.zeros((1, 3, 384, 384), np.uint8)).shape == (1, 24)
    made = text(CAPTIONS)
    pooled = image.net.encode_text(text.tokenizer(CAPTIONS))  # its own mask, which is in no file, is there
    assert torch.isfinite(pooled).all()
    # Some copies hold the scale as a vector of one number; no feature depends on it.
    again = load_clip(changed(file, lambda t: t.update(logit_scale=t["logit_scale"].reshape(1))))
    assert torch.equal(again[1](CAPTIONS), made)
    other = load_clip(changed(file, lambda t: t["ln_final.bias"].add_(1e-3)))
    assert other[0].name != image.name
    assert other[1].name != text.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("visual.proj"), "lacks the tensor visual.proj"),
        (lambda t: t.pop("ln_final.bias"), "1 missing .ln_final.bias"),
        (lambda t: t.update(logit_bias=torch.zeros(())), "1 unexpected .logit_bias"),
        (lambda t: t.update({"visual.ln_pre.bias": torch.zeros(3)}), r"ln_pre.bias \(3,\) instead of \(80,\)"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(file, change, message):
    with pytest.raises(WeightsError, match=message) as caught:
        load_clip(changed(file, change))
    assert "other.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
