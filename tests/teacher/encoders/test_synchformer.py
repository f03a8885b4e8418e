"""Synchformer: published names and sizes, recorded numbers, divided attention, segments, spectrogram, offset head."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from teacher.encoders.synchformer import (
    GroupedAttention,
    SynchformerEncoder,
    SynchformerVisual,
    TokenPool,
    VisualConfig,
    VisualEncoder,
    attend,
    cut_segments,
    encode_segments,
    encode_video,
    load_sync_encoder,
)
from teacher.encoders.synchformer_sync import (
    MEAN,
    STD,
    AudioConfig,
    AudioEncoder,
    AudioLayer,
    OffsetBlock,
    OffsetConfig,
    Synchformer,
    SynchformerConfig,
    class_offsets_s,
    cut_wave,
    htk_filterbank,
    offset_s,
    sync_spectrogram,
)
from teacher.files.errors import WeightsError
from teacher.network.sequence import sync_segments, sync_video_frames
from tests.golden import sync
from tests.golden.recipe import Recording
from tests.rounding import UNIT

GOLDEN = Path(sync.__file__).parent
VISUAL = VisualConfig(width=12, depth=2, heads=3, hidden=20, patch=2, patches=9)
"""Frames of 6 x 6 pixels."""
SMALL = SynchformerConfig(
    visual=VISUAL,
    audio=AudioConfig(width=16, depth=1, heads=2, hidden=24),
    head=OffsetConfig(width=16, depth=1, heads=8, hidden=24),
)


def random_(module: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, every parameter drawn anew: biases and gains too."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.double().parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=g, dtype=torch.float64) + (p.ndim == 1))
    return module.eval().requires_grad_(False)


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def encoder_layer(width: int, heads: int, hidden: int, eps: float) -> nn.TransformerEncoderLayer:
    """torch's own pre-norm layer, the oracle of ours."""
    layer = nn.TransformerEncoderLayer(
        width, heads, hidden, dropout=0.0, activation="gelu", layer_norm_eps=eps, batch_first=True, norm_first=True
    )
    return layer.double().requires_grad_(False)


def packed(layer: nn.TransformerEncoderLayer, names: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    """Load torch's layer with our tensors: names maps its names to ours, several separated by blanks."""
    layer.load_state_dict({theirs: torch.cat([tensors[n] for n in ours.split()]) for theirs, ours in names.items()})


# Names, sizes, recorded numbers


def test_names_shapes_and_order_are_those_of_the_published_file():
    manifest = json.loads((GOLDEN / "manifests" / "synchformer.json").read_text())
    with torch.device("meta"):
        full, visual = Synchformer(SynchformerConfig()), SynchformerVisual(VisualConfig())
    entries = [[name, list(tensor.shape)] for name, tensor in full.state_dict().items()]
    assert entries == manifest["entries"]
    assert len(entries) == 513
    assert sum(p.numel() for p in full.parameters()) == manifest["num_parameters"] == 237_460_245
    entries = [[name, list(tensor.shape)] for name, tensor in visual.state_dict().items()]
    assert entries == [e for e in manifest["entries"] if e[0].startswith("vfeat_extractor.")]
    assert len(entries) == 238
    assert sum(p.numel() for p in visual.parameters()) == manifest["visual"]["num_parameters"] == 122_440_704


def test_sizes_are_read_off_the_tensors():
    with torch.device("meta"):
        assert SynchformerConfig.from_tensors(Synchformer(SynchformerConfig()).state_dict()) == SynchformerConfig()
        tensors = SynchformerVisual(VISUAL).state_dict()
    assert VisualConfig.from_tensors(tensors, heads=3) == VISUAL
    with pytest.raises(ValueError, match="heads must divide width 12, got 5"):
        VisualConfig.from_tensors(tensors, heads=5)


def test_recorded_small_visual_encoder():
    made = list(sync.sync_visual(Recording.read(GOLDEN / "recordings", "F1_sync_visual_small")))
    assert {d.name for d in made} == {"features", "trace.blocks.0", "trace.norm", "video_features", "features_f64"}
    assert [d for d in made if not d.value <= d.tolerance] == []


@pytest.mark.parametrize("part", ["blocks", "norm", "spatial_attn_agg"])
def test_float64_recording_shows_the_epsilon_of_every_norm(part):
    """1e-5 in place of 1e-6 moves the features by some 1e-6: a thousand times less than float32 tells, 1e6 of 1e-12."""
    recording = Recording.read(GOLDEN / "recordings", "F1_sync_visual_small")
    network = SynchformerVisual(VisualConfig.from_tensors(recording.parameters(), heads=4))
    network.load_state_dict(recording.parameters())
    for module in network.vfeat_extractor.get_submodule(part).modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    with torch.no_grad():
        made = network.double()(sync.recorded_input(recording, "segments")[:, :1].double())
    recorded = recording.tensors["out.features_f64"][:, :1]
    assert (made - recorded).abs().max() / recorded.abs().max() > 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [(sync.sync_visual, "F2_sync_visual"), (sync.sync_full, "F3_sync_audio_and_head")]
)
def test_recorded_full_size(recordings, kind, name):
    made = list(kind(Recording.read(recordings, name)))
    assert len(made) >= 3
    assert [d for d in made if not d.value <= d.tolerance] == []


# The visual encoder


def test_attention_is_softmax_over_keys_in_each_head():
    q, k, v = draw(2, 3, 4, 6, seed=2), draw(2, 3, 5, 6, seed=3), draw(2, 3, 5, 6, seed=4)
    made = attend(q, k, v, 2)
    for head in (slice(0, 3), slice(3, 6)):
        weights = torch.softmax(q[..., head] @ k[..., head].mT / math.sqrt(3), dim=-1)
        torch.testing.assert_close(made[..., head], weights @ v[..., head])


@pytest.mark.parametrize("over", ["time", "space"])
def test_patch_depends_on_its_group_and_the_class_token_alone(over):
    slots, patches = 4, 5
    attention = random_(GroupedAttention(6, 2, slots, over))
    x = draw(1, 1 + slots * patches, 6)
    slot, patch = 2, 3
    changed = x.clone()
    changed[0, 1 + slot * patches + patch] += 1.0
    moved = ((attention(changed) - attention(x))[0].abs().amax(-1) > 1e-9).tolist()
    grid = np.zeros((slots, patches), bool)
    if over == "time":
        grid[:, patch] = True
    else:
        grid[slot] = True
    assert moved == [True, *grid.flatten().tolist()]  # the class token sees every patch
    changed = x.clone()
    changed[0, 0] += 1.0
    assert bool(((attention(changed) - attention(x)).abs().amax(-1) > 1e-9).all())  # every patch sees the class token


def test_pool_is_the_class_token_of_torchs_encoder_layer():
    pool = random_(TokenPool(12, 3, 20, 1e-6))
    layer = encoder_layer(12, 3, 20, 1e-6)
    tensors = pool.state_dict()
    layer.load_state_dict({n: t for n, t in tensors.items() if n != "cls_token"})
    tokens = draw(4, 7, 12)
    whole = layer.train()(torch.cat((tensors["cls_token"].expand(4, -1, -1), tokens), dim=1))
    torch.testing.assert_close(pool(tokens), whole[:, 0], atol=1e-12, rtol=1e-12)


def test_segments_begin_every_eighth_frame():
    frames = torch.arange(50)[None, :, None, None, None].expand(2, -1, 3, 6, 6)
    segments = cut_segments(frames)
    assert segments.shape == (2, sync_segments(2.0), 16, 3, 6, 6)
    assert sync_video_frames(2.0) == 50
    for i in range(segments.shape[1]):
        assert segments[0, i, :, 0, 0, 0].tolist() == list(range(8 * i, 8 * i + 16))
    with pytest.raises(ValueError, match=r"at least 16 .*got 15"):
        cut_segments(frames[:, :15])


def test_features_depend_neither_on_chunk_nor_on_neighbours_in_the_batch():
    encoder = random_(VisualEncoder(VISUAL))
    video = draw(2, 40, 3, 6, 6)
    whole = encode_video(encoder, video, chunk=100)
    assert whole.shape == (2, 32, 12)
    torch.testing.assert_close(encode_video(encoder, video, chunk=1), whole, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(encode_video(encoder, video[1:], chunk=3), whole[1:], atol=1e-12, rtol=1e-12)
    # Segment 2 is frames 16 to 31: it is the clip that begins there.
    torch.testing.assert_close(encode_video(encoder, video[:, 16:32]), whole[:, 16:24], atol=1e-12, rtol=1e-12)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        encode_video(encoder, video, chunk=0)


def test_bytes_are_brought_to_minus_one_to_one():
    encoder = random_(VisualEncoder(VISUAL))
    pixels = torch.randint(0, 256, (1, 1, 16, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert {0, 255} <= set(pixels.flatten().tolist())
    scaled = pixels.double() / 127.5 - 1.0
    torch.testing.assert_close(encode_segments(encoder, pixels), encode_segments(encoder, scaled))


def test_unused_image_embedding_changes_nothing():
    encoder = random_(VisualEncoder(VISUAL))
    segments = draw(1, 16, 3, 6, 6)
    before = encoder(segments)
    encoder.patch_embed.proj.weight.fill_(7.0)
    torch.testing.assert_close(encoder(segments), before, atol=0, rtol=0)


def test_encoder_takes_bytes_of_one_size():
    network = SynchformerVisual(replace(VISUAL, patch=16, patches=196, depth=1)).eval()
    encoder = SynchformerEncoder(name="random", network=network)
    frames = np.zeros((24, 3, 224, 224), np.uint8)
    assert encoder(frames).shape == (16, 12)
    with pytest.raises(ValueError, match=r"\(T, 3, 224, 224\), got torch.uint8 \(24, 3, 112, 112\)"):
        encoder(frames[..., ::2, ::2])
    with pytest.raises(ValueError, match="at least 16"):
        encoder(frames[:15])


# The audio half and the offset head


def test_wave_segments_last_as_long_as_those_of_the_picture():
    wave = torch.arange(32_000.0)[None]
    segments = cut_wave(wave)
    assert segments.shape == (1, 5, 10_240)
    assert segments[0, :, 0].tolist() == [5120.0 * i for i in range(5)]
    assert cut_wave(torch.zeros(1, 128_000)).shape[1] == sync_segments(8.0) == 24
    with pytest.raises(ValueError, match="at least 10240"):
        cut_wave(wave[:, :10_239])


def test_filters_are_triangles_that_add_to_one():
    filters = htk_filterbank().double()
    assert filters.shape == (128, 513)
    assert bool((filters >= 0).all())
    assert filters.max() <= 1
    frequencies = torch.arange(513, dtype=torch.float64) * 16_000 / 1024
    mel = 2595 * torch.log10(1 + frequencies / 700)
    step = 2595 * math.log10(1 + 8000 / 700) / 129
    inside = (mel > step) & (mel < 128 * step)
    # Neighbouring triangles of height 1 share their edges, so between the first and the last peak they add to 1.
    # The edges are equally spaced in mel and the sides straight in Hz, so this holds to float32's two roundings.
    torch.testing.assert_close(filters.sum(0)[inside], torch.ones(int(inside.sum())).double(), atol=2 * UNIT, rtol=0)
    centre = 700 * (10 ** ((torch.arange(1, 129) * step) / 2595) - 1)
    peak = frequencies[filters.argmax(1)]
    assert (peak - centre).abs().max() <= 16_000 / 1024


def test_spectrogram_is_the_logarithm_of_the_mel_power():
    wave = 0.1 * draw(2, 10_240)
    made = sync_spectrogram(wave)
    assert made.shape == (2, 128, 66)
    # Frame 10 is centred on sample 1600; the 400-sample window is in the middle of the 1024 samples.
    n = torch.arange(400, dtype=torch.float64)
    windowed = wave[:, 1400:1800] * (0.5 - 0.5 * torch.cos(2 * math.pi * n / 400))
    angle = -2j * math.pi / 1024 * torch.outer(torch.arange(513).double(), n)
    power = (windowed.to(torch.complex128) @ torch.exp(angle).T).abs().square()
    expected = (torch.log(power @ htk_filterbank().double().T + 1e-6) - MEAN) / (2 * STD)
    torch.testing.assert_close(made[:, :, 10], expected, atol=1e-9, rtol=1e-9)
    # The appended frame is 0 before the normalisation, which is not silence: that is ln(1e-6) = -13.8.
    torch.testing.assert_close(made[:, :, 65], torch.full((2, 128), 4.2677393 / (2 * 4.5689974)).double())
    silent = sync_spectrogram(torch.zeros(1, 10_240))
    torch.testing.assert_close(silent[..., :65], torch.full((1, 128, 65), (math.log(1e-6) - MEAN) / (2 * STD)))


def test_audio_layer_is_torchs_encoder_layer():
    config = AudioConfig(width=12, depth=1, heads=3, hidden=20, eps=1e-3)  # an epsilon that is seen
    made = random_(AudioLayer(config))
    layer = encoder_layer(12, 3, 20, 1e-3)
    names = {
        f"self_attn.in_proj_{part}": " ".join(f"attention.attention.{n}.{part}" for n in ("query", "key", "value"))
        for part in ("weight", "bias")
    }
    for theirs, ours in {
        "self_attn.out_proj": "attention.output.dense",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }.items():
        names |= {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}
    packed(layer, names, made.state_dict())
    x = draw(2, 5, 12)
    torch.testing.assert_close(made(x), layer.train()(x), atol=1e-12, rtol=1e-12)


def test_offset_block_is_torchs_encoder_layer():
    config = OffsetConfig(width=16, heads=8, hidden=24, eps=1e-3)
    made = random_(OffsetBlock(config))
    layer = encoder_layer(16, 8, 24, 1e-3)
    names = {
        f"self_attn.in_proj_{part}": " ".join(f"attn.{n}.{part}" for n in ("query", "key", "value"))
        for part in ("weight", "bias")
    }
    for theirs, ours in {
        "self_attn.out_proj": "attn.proj", "linear1": "mlp.0", "linear2": "mlp.2", "norm1": "ln1", "norm2": "ln2"
    }.items():  # fmt: skip
        names |= {f"{theirs}.{part}": f"{ours}.{part}" for part in ("weight", "bias")}
    packed(layer, names, made.state_dict())
    x = draw(2, 5, 16)
    torch.testing.assert_close(made(x), layer.train()(x), atol=1e-12, rtol=1e-12)


def test_audio_patches_are_ordered_by_frequency_and_pooled_over_it():
    """Without layers a token depends on its patch alone, so that column k depends on frames 10 k to 10 k + 15."""
    encoder = random_(AudioEncoder(AudioConfig(width=12, depth=0, heads=3, hidden=20)))
    spectrogram = draw(1, 1, 128, 66)
    before = encoder(spectrogram)
    assert before.shape == (1, 1, 6, 12)
    changed = spectrogram.clone()
    changed[..., 100, 33] += 1.0  # frame 33 is in the patches of columns 2 (20..35) and 3 (30..45)
    moved = (encoder(changed) - before).abs().amax(-1)[0, 0] > 1e-9
    assert moved.tolist() == [False, False, True, True, False, False]


def test_hearing_is_the_same_in_any_chunks():
    network = random_(Synchformer(SMALL))
    wave = draw(2, 26_000)
    torch.testing.assert_close(
        network.audio_features(wave, chunk=1), network.audio_features(wave), atol=1e-12, rtol=1e-12
    )


def test_logits_come_from_fourteen_segments():
    network = random_(Synchformer(SMALL))
    visual, audio = draw(2, 14, 8, 12), draw(2, 14, 6, 16)
    logits = network.logits(visual, audio)
    assert logits.shape == (2, 21)
    torch.testing.assert_close(network.logits(visual[1:], audio[1:]), logits[1:], atol=1e-12, rtol=1e-12)
    assert (network.logits(visual, audio.flip(1)) - logits).abs().max() > 1e-6  # order matters: positions are learned
    with pytest.raises(ValueError, match=r"must be 196 together .*got 104 and 78"):
        network.logits(visual[:, :13], audio[:, :13])


def test_sequence_is_off_visual_mod_audio_and_is_read_at_off():
    network = random_(Synchformer(SMALL))
    visual, audio = draw(1, 14, 8, 12), draw(1, 14, 6, 16)
    head, kept = network.transformer, []
    hook = head.blocks[0].register_forward_hook(lambda _, inputs, output: kept.extend((inputs[0], output)))
    logits = network.logits(visual, audio)
    hook.remove()
    sequence, output = kept
    rows = (sequence - head.pos_emb_cfg.pos_emb).split([1, 112, 1, 84], dim=1)
    expected = (
        head.OFF_tok,
        head.vis_in_lnorm(network.vproj(visual.flatten(1, 2))),
        head.MOD_tok,
        head.aud_in_lnorm(network.aproj(audio.flatten(1, 2))),
    )
    torch.testing.assert_close(rows, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(logits, head.off_head(head.ln_f(output[:, 0])), atol=1e-12, rtol=1e-12)


def test_offset_classes_are_fifths_of_a_second():
    assert class_offsets_s().tolist() == [round(-2 + 0.2 * i, 9) for i in range(21)]
    assert offset_s(torch.eye(21)).tolist() == class_offsets_s().tolist()
    # A guess at random is off by 2 (0.2 + ... + 2.0) / 21 = 22 / 21 s on average.
    assert float(class_offsets_s().abs().mean()) == pytest.approx(22 / 21)


# Files


@pytest.fixture
def full_file(tmp_path) -> Path:
    config = replace(SMALL, visual=VisualConfig(width=64, depth=1, heads=1, hidden=20, patch=2, patches=9))
    config = replace(config, audio=AudioConfig(width=64, depth=1, heads=1, hidden=24))
    torch.manual_seed(0)
    save_file(Synchformer(config).state_dict(), tmp_path / "synchformer.safetensors")
    return tmp_path / "synchformer.safetensors"


def rewritten(path: Path, change) -> Path:
    tensors = sync_tensors(path)
    change(tensors)
    other = path.with_name("other.safetensors")
    save_file(tensors, other)
    return other


def sync_tensors(path: Path) -> dict[str, torch.Tensor]:
    from teacher.files.components import read_tensors

    return dict(read_tensors(path))


def test_visual_encoder_loads_from_the_complete_file_and_from_its_own(full_file):
    whole = load_sync_encoder(full_file)
    visual_only = rewritten(full_file, lambda t: [t.pop(n) for n in list(t) if not n.startswith("vfeat_extractor.")])
    alone = load_sync_encoder(visual_only)
    assert whole.name == alone.name
    segments = draw(1, 2, 16, 3, 6, 6).float()
    made = whole.network(segments)
    assert torch.equal(alone.network(segments), made)
    assert torch.equal(load_sync_encoder(visual_only).network(segments), made)
    assert not any(p.requires_grad for p in whole.network.parameters())
    other = rewritten(full_file, lambda t: t["vfeat_extractor.norm.bias"].add_(1e-3))
    assert load_sync_encoder(other).name != whole.name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("vfeat_extractor.blocks.0.norm3.bias"), "1 missing .vfeat_extractor.blocks.0.norm3.bias"),
        (lambda t: t.pop("vfeat_extractor.pos_embed"), "lacks the tensor vfeat_extractor.pos_embed"),
        (lambda t: t.update({"vfeat_extractor.x": torch.zeros(1)}), "1 unexpected .vfeat_extractor.x"),
        (lambda t: t.update({"vfeat_extractor.norm.bias": torch.zeros(3)}), r"norm.bias \(3,\) instead of \(64,\)"),
        (lambda t: t.pop("aproj.weight") + t.pop("aproj.bias").sum(), "it holds afeat_extractor, transformer, vfeat"),
        (lambda t: t.update({"model.x": torch.zeros(1)}), "must hold vfeat_extractor.* alone or the complete model"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(full_file, change, message):
    other = rewritten(full_file, change)
    with pytest.raises(WeightsError, match=message) as caught:
        load_sync_encoder(other)
    assert str(other) in str(caught.value)
    assert "\n" not in str(caught.value)
