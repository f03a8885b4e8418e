"""ImageBind: the published layout, the inputs of both towers, the towers against torch's, batches and files."""

import math
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from eval.extractors.base import EmbeddingModel
from eval.extractors.imagebind import (
    IMAGEBIND_HUGE,
    PICTURE_PLACES,
    SOUND_PLACES,
    UNUSED,
    ImageBind,
    ImageBindConfig,
    ImageBindNetwork,
    TowerConfig,
    checked_picture,
    crop_offsets,
    frame_request,
    imagebind_frames,
    picture_clips,
    piece_starts,
    sound_pieces,
)
from eval.extractors.mel_front_end import KaldiFbank
from eval.metrics.alignment import paired_cosines
from teacher.files import file_digest
from teacher.files.errors import WeightsError
from teacher.media import MediaError, MediaInfo, write_audio, write_video
from tests.golden.recipe import recipe_tensor
from tests.rounding import log_energy

SMALL = ImageBindConfig(
    vision=TowerConfig(width=16, depth=2, heads=2), audio=TowerConfig(width=24, depth=2, heads=3), dimensions=12
)
Layout = dict[str, tuple[int, ...]]


def layout_of(network: ImageBindNetwork) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]


def small_tensors() -> dict[str, torch.Tensor]:
    """Uniform in [-0.5, 0.5] by name, around one for the gains of norms: wide enough for attention to have its say."""
    with torch.device("meta"):
        layout = layout_of(ImageBindNetwork(SMALL))
    gains = [n for n, s in layout if n.endswith(".weight") and len(s) == 1]
    return {n: recipe_tensor("imagebind", n, list(s), 0.5, float(n in gains)) for n, s in layout}


def others() -> dict[str, torch.Tensor]:
    """One tensor or two of every tower that is not used."""
    names = [name for name in other_towers() if ".blocks." not in name or ".blocks.0." in name]
    return {name: torch.ones(2) for name in names}


def written(folder: Path, tensors: object) -> Path:
    path = folder / IMAGEBIND_HUGE.file
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ImageBind:
    path = written(tmp_path_factory.mktemp("imagebind"), small_tensors() | others())
    return ImageBind.load(path, config=SMALL)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# Layout


def tower(layout: Layout, sense: str, width: int, depth: int, *, extra: bool) -> None:
    """Blocks of a tower: 12 tensors each, 14 with the learnt key and value."""
    for i in range(depth):
        b = f"modality_trunks.{sense}.blocks.{i}"
        layout |= {f"{b}.attn.in_proj_weight": (3 * width, width), f"{b}.attn.in_proj_bias": (3 * width,)}
        if extra:
            layout |= {f"{b}.attn.bias_k": (1, 1, width), f"{b}.attn.bias_v": (1, 1, width)}
        for name, shape in (
            ("attn.out_proj", (width, width)), ("norm_1", (width,)), ("mlp.fc1", (4 * width, width)),
            ("mlp.fc2", (width, 4 * width)), ("norm_2", (width,)),
        ):  # fmt: skip
            layout |= {f"{b}.{name}.weight": shape, f"{b}.{name}.bias": shape[:1]}


def published_layout() -> Layout:
    """569 tensors: 392 of the picture's tower, 177 of the sound's."""
    p, layout = "modality_preprocessors", {}
    layout |= {
        f"{p}.vision.cls_token": (1, 1, 1280), f"{p}.vision.rgbt_stem.proj.1.weight": (1280, 3, 2, 14, 14),
        f"{p}.vision.pos_embedding_helper.pos_embed": (1, 257, 1280),
        f"{p}.audio.cls_token": (1, 1, 768), f"{p}.audio.rgbt_stem.proj.weight": (768, 1, 16, 16),
        f"{p}.audio.rgbt_stem.norm_layer.weight": (768,), f"{p}.audio.rgbt_stem.norm_layer.bias": (768,),
        f"{p}.audio.pos_embedding_helper.pos_embed": (1, 229, 768),
        "modality_trunks.vision.pre_transformer_layer.0.weight": (1280,),
        "modality_trunks.vision.pre_transformer_layer.0.bias": (1280,),
    }  # fmt: skip
    tower(layout, "vision", 1280, 32, extra=False)
    tower(layout, "audio", 768, 12, extra=True)
    for sense, width in (("vision", 1280), ("audio", 768)):
        h = f"modality_heads.{sense}"
        layout |= {f"{h}.0.weight": (width,), f"{h}.0.bias": (width,), f"{h}.2.weight": (1024, width)}
    return layout | {"modality_postprocessors.audio.1.log_logit_scale": ()}


def other_towers() -> Layout:
    """The 742 tensors of text, depth, heat and motion, as the official classes make them."""
    p, layout = "modality_preprocessors", {}
    layout |= {
        f"{p}.text.pos_embed": (1, 77, 1024), f"{p}.text.mask": (77, 77),
        f"{p}.text.token_embedding.weight": (49408, 1024),
        "modality_heads.text.proj.0.weight": (1024,), "modality_heads.text.proj.0.bias": (1024,),
        "modality_heads.text.proj.1.weight": (1024, 1024),
    }  # fmt: skip
    tower(layout, "text", 1024, 24, extra=False)
    for sense, stem, width, places, linear, depth, head in (
        ("depth", "depth_stem", 384, 197, (384, 1, 16, 16), 12, 2),
        ("thermal", "rgbt_stem", 768, 197, (768, 1, 16, 16), 12, 2),
        ("imu", "imu_stem", 512, 251, (512, 48), 6, 3),
    ):
        position = "pos_embed" if sense == "imu" else "pos_embedding_helper.pos_embed"
        layout |= {
            f"{p}.{sense}.cls_token": (1, 1, width), f"{p}.{sense}.{position}": (1, places, width),
            f"{p}.{sense}.{stem}.proj.weight": linear, f"{p}.{sense}.{stem}.norm_layer.weight": (width,),
            f"{p}.{sense}.{stem}.norm_layer.bias": (width,),
        }  # fmt: skip
        tower(layout, sense, width, depth, extra=True)
        h = f"modality_heads.{sense}"
        layout |= {f"{h}.0.weight": (width,), f"{h}.0.bias": (width,), f"{h}.{head}.weight": (1024, width)}
    return layout | {f"modality_postprocessors.{s}.1.log_logit_scale": () for s in ("text", "depth", "thermal", "imu")}


def test_names_shapes_and_order_are_those_of_the_published_file():
    with torch.device("meta"):
        network = ImageBindNetwork(ImageBindConfig())
    assert layout_of(network) == list(published_layout().items())
    assert len(published_layout()) == 392 + 177 == 569

    def count(sense: str) -> int:
        return sum(p.numel() for name, p in network.named_parameters() if f".{sense}." in name)

    # Blocks 12 w^2 + 13 w, and 2 w with the learnt key and value; places, patches, norms and head beside.
    w = 1280
    assert count("vision") == 32 * (12 * w * w + 13 * w) + (1 + 257 + 3 * 2 * 14 * 14 + 4 + 1024) * w == 632_829_440
    w = 768
    assert count("audio") == 12 * (12 * w * w + 15 * w) + (1 + 229 + 16 * 16 + 4 + 1024) * w == 86_235_648


def test_the_rest_of_the_file_is_named_by_pattern():
    rest, used = other_towers(), published_layout()
    assert len(rest) + len(used) == 1311
    assert all(any(fnmatchcase(name, pattern) for pattern in UNUSED) for name in rest)
    assert not any(fnmatchcase(name, pattern) for name in used for pattern in UNUSED)
    assert all(any(fnmatchcase(name, pattern) for name in rest) for pattern in UNUSED)
    numbers = sum(math.prod(shape) for shape in [*rest.values(), *used.values()])
    assert numbers == 1_200_786_990  # 1200.8 million
    # The published file has 4 803 584 173 bytes: four each, and a third of a kilobyte per tensor for names and places.
    assert 0 < (4_803_584_173 - 4 * numbers) / 1311 < 512


def test_places_of_both_towers():
    assert PICTURE_PLACES == 1 + 16 * 16 == 257
    assert SOUND_PLACES == 1 + 12 * 19 == 229  # (128 - 16) // 10 + 1 and (204 - 16) // 10 + 1


def test_epsilons_of_the_norms():
    """1e-6 everywhere but behind the sound's convolution, where it is torch's own 1e-5."""
    network = ImageBindNetwork(SMALL)
    odd = [name for name, m in network.named_modules() if isinstance(m, nn.LayerNorm) and m.eps != 1e-6]
    assert odd == ["modality_preprocessors.audio.rgbt_stem.norm_layer"]
    assert network.get_submodule(odd[0]).eps == 1e-5


# Sound


@pytest.mark.parametrize(
    ("samples", "starts"),
    [
        (128_000, (0, 48_000, 96_000)),  # 8 s: 0 to 2, 3 to 5, 6 to 8
        (160_001, (0, 64_000, 128_001)),  # an odd rest is rounded down in the middle
        (80_000, (0, 24_000, 48_000)),  # 5 s: they overlap
        (32_000, (0, 0, 0)),
        (31_999, (0, 0, 0)),
        (400, (0, 0, 0)),
    ],
)
def test_three_pieces_from_the_first_to_the_last(samples, starts):
    assert piece_starts(samples) == starts
    wave = draw(1, samples)
    made = sound_pieces(wave)
    assert made.shape == (1, 3, 128, 204)
    for k, start in enumerate(starts):
        torch.testing.assert_close(made[:, k], sound_pieces(wave[:, start : start + 32_000])[:, 0], rtol=0, atol=1e-4)


def test_two_seconds_are_198_frames_and_six_of_zero_before_normalisation():
    made = sound_pieces(draw(1, 128_000))
    assert KaldiFbank().num_frames(32_000) == 198
    torch.testing.assert_close(made[..., 198:], torch.full((1, 3, 128, 6), 4.268 / 9.138))
    assert (made[..., 197] != made[..., 198]).all()
    # Silence is ln 2^-23 in every frame that there is.
    silent = sound_pieces(torch.zeros(1, 32_000))
    expected = torch.full((1, 3, 128, 198), (-23 * math.log(2.0) + 4.268) / 9.138)
    torch.testing.assert_close(silent[..., :198], expected)
    # 1 + (16 000 - 400) // 160 frames of one second.
    short = sound_pieces(draw(1, 16_000))
    torch.testing.assert_close(short[..., 98:], torch.full((1, 3, 128, 106), 4.268 / 9.138))
    assert (short[..., 97] != short[..., 98]).all()


def test_energies_are_those_of_kaldi_and_a_constant_does_not_matter():
    wave = draw(2, 128_000)
    fbank, piece = KaldiFbank(), wave[:, 48_000:80_000]
    logs = fbank(piece).transpose(1, 2)
    # The mean of the whole is taken off first, and so every sample is rounded in another way: a last bit of a frame, as
    # in a transform, which shows where a filter, of one bin at the low end, happens to have little energy.
    rounding = log_energy(
        logs.exp(), floor=0.0, frame_norm=2.0 * piece.unfold(1, 400, 160).norm(dim=2)[:, None], n_fft=fbank.n_fft,
        area=fbank.filters().sum(1)[:, None],
    )  # fmt: skip
    off = (sound_pieces(wave)[:, 1, :, :198] - (logs + 4.268) / 9.138).abs()
    assert float(rounding.median()) < 1e-4
    assert bool((off <= rounding / 9.138 + 1e-6).all())
    torch.testing.assert_close(sound_pieces(wave + 0.25), sound_pieces(wave), rtol=0, atol=2e-3)  # rounding at 0.25


def test_a_short_wave_is_its_piece_three_times(small):
    wave = draw(1, 20_000)
    pieces = sound_pieces(wave)
    assert torch.equal(pieces[:, 0], pieces[:, 1])
    assert torch.equal(pieces[:, 0], pieces[:, 2])
    with torch.no_grad():
        torch.testing.assert_close(small.embed(wave).rows, small.network.embed_sound(pieces[:, 0]))


# Picture


@pytest.mark.parametrize(
    ("height", "width", "corners"),
    [
        (224, 398, ((0, 0), (0, 87), (0, 174))),  # 16:9
        (224, 299, ((0, 0), (0, 38), (0, 75))),  # 37.5 is rounded up
        (398, 224, ((0, 0), (87, 0), (174, 0))),
        (299, 224, ((0, 0), (38, 0), (75, 0))),
        (224, 224, ((0, 0), (0, 0), (0, 0))),
    ],
)
def test_three_squares_along_the_long_side(height, width, corners):
    assert crop_offsets(height, width) == corners


@pytest.mark.parametrize(("frames", "clips"), [(2, 3), (4, 9), (5, 12)])
def test_successive_pairs_in_three_squares(frames, clips):
    picture = pixels(frames, 3, 224, 299)
    made = picture_clips(checked_picture(picture))
    assert made.shape == (clips, 3, 2, 224, 224)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    for pair in range(frames - 1):
        for square, left in enumerate((0, 38, 75)):
            for colour in range(3):
                part = picture[pair : pair + 2, colour, :, left : left + 224].double() / 255
                expected = ((part - mean[colour]) / std[colour]).float()
                torch.testing.assert_close(made[3 * pair + square, colour], expected, rtol=0, atol=1e-5)


def test_wrong_frames_are_refused(small):
    for wrong in (pixels(4, 3, 225, 300), pixels(4, 3, 200, 224), pixels(4, 1, 224, 224), pixels(3, 224, 224)):
        with pytest.raises(ValueError, match=r"\(T, 3, H, W\) with a short side of 224, got torch.uint8"):
            small.embed_frames(wrong)
    with pytest.raises(ValueError, match=r"got torch.float32"):
        small.embed_frames(torch.zeros(4, 3, 224, 224))
    with pytest.raises(ValueError, match=r"at least 2 frames \(4 s of picture\), got 1"):
        small.embed_frames(pixels(1, 3, 224, 224))


def test_nothing_is_cut_off_when_frames_are_read():
    def asked(width: int, height: int) -> tuple[int, int]:
        info = MediaInfo(
            path=Path("a.mp4"), duration_s=8.0, has_video=True, has_audio=False, width=width, height=height, fps=25.0
        )  # fmt: skip
        request = frame_request(info)
        assert (request.fps, request.fit) == (0.5, "stretch")
        return request.height, request.width

    assert asked(640, 360) == (224, 398)  # 224 * 640 / 360 = 398.2
    assert asked(360, 640) == (398, 224)
    assert asked(320, 240) == (224, 298)  # 298.67, rounded down
    assert asked(224, 224) == (224, 224)


def test_frames_are_taken_at_odd_seconds_one_after_those_of_the_rate_filter(tmp_path, small):
    """FFmpeg's filter, which av-benchmark's decoder uses, takes the last frame before each odd second."""
    shades = (16 + 5 * np.arange(40)).astype(np.uint8)  # 5 frames a second
    clip = np.broadcast_to(shades[:, None, None, None], (40, 32, 48, 3)).copy()
    path = tmp_path / "clip.mp4"
    write_video(path, clip, 5.0, np.zeros(128_000, np.float32), 16_000)

    def numbers(frames: np.ndarray) -> list[float]:
        return np.rint((frames.mean(axis=(1, 2, 3)) - 16) / 5).tolist()

    frames = imagebind_frames(path, duration_s=8.0)
    assert frames.shape == (4, 3, 224, 336)
    assert numbers(frames) == [5, 15, 25, 35]
    assert [(shade - 16) // 5 for shade in filtered(clip, 5)] == [4, 14, 24, 34]
    assert numbers(imagebind_frames(path, start_s=2.0, duration_s=5.9)) == [15, 25]
    assert small.embed_frames(frames).shape == (12,)


def filtered(clip: np.ndarray, fps: int) -> list[int]:
    """Shades of the frames that FFmpeg's `fps=0.5` lets through."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=48, height=32, format="rgb24", time_base=Fraction(1, fps))
    rate, sink = graph.add("fps", "0.5"), graph.add("buffersink")
    source.link_to(rate)
    rate.link_to(sink)
    graph.configure()
    for k, picture in enumerate(clip):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = k, Fraction(1, fps)
        graph.push(frame)
    graph.push(None)
    taken = []
    while True:
        try:
            taken.append(int(graph.pull().to_ndarray()[0, 0, 0]))
        except av.error.EOFError:
            return taken


def test_sound_files_have_no_frames(tmp_path):
    path = tmp_path / "sound.wav"
    write_audio(path, np.zeros(16_000, np.float32), 16_000)
    with pytest.raises(ValueError, match=r"sound\.wav: has no picture"):
        imagebind_frames(path, duration_s=1.0)
    with pytest.raises(MediaError, match=r"absent\.mp4"):
        imagebind_frames(tmp_path / "absent.mp4", duration_s=1.0)


# Network


def by_torch(tensors: dict[str, torch.Tensor], sense: str, tokens: torch.Tensor, heads: int) -> torch.Tensor:
    """Tokens with positions -> embedding of length 1, out of torch's own MultiheadAttention, norms and GELU."""
    width = tokens.shape[-1]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, (width,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-6)

    if sense == "vision":
        tokens = norm("modality_trunks.vision.pre_transformer_layer.0", tokens)
    for i in range(2):
        b = f"modality_trunks.{sense}.blocks.{i}"
        attention = nn.MultiheadAttention(width, heads, add_bias_kv=sense == "audio", batch_first=True)
        attention.load_state_dict({n.removeprefix(f"{b}.attn."): t for n, t in tensors.items() if f"{b}.attn." in n})
        x = norm(f"{b}.norm_1", tokens)
        tokens = tokens + attention(x, x, x, need_weights=False)[0]
        x = functional.linear(norm(f"{b}.norm_2", tokens), tensors[f"{b}.mlp.fc1.weight"], tensors[f"{b}.mlp.fc1.bias"])
        tokens = tokens + functional.linear(
            functional.gelu(x), tensors[f"{b}.mlp.fc2.weight"], tensors[f"{b}.mlp.fc2.bias"]
        )
    h = f"modality_heads.{sense}"
    return functional.normalize(functional.linear(norm(f"{h}.0", tokens)[:, 0], tensors[f"{h}.2.weight"]), dim=-1)


def with_places(tensors: dict[str, torch.Tensor], sense: str, patches: torch.Tensor) -> torch.Tensor:
    p = f"modality_preprocessors.{sense}"
    first = tensors[f"{p}.cls_token"].expand(len(patches), -1, -1)
    return torch.cat((first, patches), dim=1) + tensors[f"{p}.pos_embedding_helper.pos_embed"]


def test_picture_tower_is_torchs(small):
    tensors = small_tensors()
    clips = picture_clips(pixels(2, 3, 224, 250))
    kernel = tensors["modality_preprocessors.vision.rgbt_stem.proj.1.weight"].flatten(1)
    # Patches by hand: (batch, colour, time, row, y, column, x) -> row by row, each a vector of colour, time, y, x.
    cut = clips.unflatten(4, (16, 14)).unflatten(3, (16, 14)).permute(0, 3, 5, 1, 2, 4, 6).flatten(3).flatten(1, 2)
    expected = by_torch(tensors, "vision", with_places(tensors, "vision", cut @ kernel.T), 2)
    with torch.no_grad():
        torch.testing.assert_close(small.network.embed_picture(clips), expected, atol=2e-5, rtol=1e-4)


def test_sound_tower_is_torchs(small):
    tensors = small_tensors()
    pieces = sound_pieces(draw(2, 48_000)).flatten(0, 1)
    p = "modality_preprocessors.audio.rgbt_stem"
    kernel = tensors[f"{p}.proj.weight"].flatten(1)
    # 12 rows of mel bands by 19 columns of frames.
    cut = pieces.unfold(1, 16, 10).unfold(2, 16, 10).flatten(3).flatten(1, 2)
    patches = functional.layer_norm(
        cut @ kernel.T, (24,), tensors[f"{p}.norm_layer.weight"], tensors[f"{p}.norm_layer.bias"], 1e-5
    )
    expected = by_torch(tensors, "audio", with_places(tensors, "audio", patches), 3)
    with torch.no_grad():
        torch.testing.assert_close(small.network.embed_sound(pieces), expected, atol=2e-5, rtol=1e-4)


def test_a_clip_is_the_mean_of_unit_vectors(small):
    wave, frames = draw(1, 128_000), pixels(4, 3, 224, 300)
    with torch.no_grad():
        sound_rows = small.network.embed_sound(sound_pieces(wave)[0])
        seen = small.network.embed_picture(picture_clips(frames))
    assert sound_rows.shape == (3, 12)
    assert seen.shape == (9, 12)
    for parts, whole in ((sound_rows, small.embed(wave).rows[0]), (seen, small.embed_frames(frames))):
        torch.testing.assert_close(parts.norm(dim=1), torch.ones(len(parts)))
        torch.testing.assert_close(whole, parts.mean(dim=0), atol=1e-6, rtol=1e-5)
        assert 0.1 < float(whole.norm()) < 1.0


def test_the_logit_scale_moves_no_cosine(small, tmp_path):
    """The official sound embeddings are exp(log_logit_scale) times as long: here the number changes nothing."""
    name = "modality_postprocessors.audio.1.log_logit_scale"
    other = ImageBind.load(written(tmp_path, small_tensors() | {name: torch.tensor(3.0)}), config=SMALL)
    waves, seen = draw(2, 64_000), small.embed_frames(pixels(4, 3, 224, 224))
    assert torch.equal(other.embed(waves).rows, small.embed(waves).rows)
    picture = seen.expand(2, -1)
    rows = small.embed(waves).rows
    assert paired_cosines(20.0 * rows, picture) == pytest.approx(paired_cosines(rows, picture))


def test_a_clip_does_not_depend_on_its_batch(small, monkeypatch):
    waves, frames = draw(5, 64_000), pixels(5, 3, 224, 240)
    monkeypatch.setattr("eval.extractors.imagebind.CLIPS_AT_ONCE", 2)
    together, parts = small.embed(waves), small.embed_frames(frames)
    assert together.counts == (1,) * 5
    assert together.rows.shape == (5, 12)
    assert together.logits is None
    for k in (0, 3, 4):
        torch.testing.assert_close(together.rows[k : k + 1], small.embed(waves[k : k + 1]).rows, atol=1e-5, rtol=1e-5)
    assert (together.rows[0] - together.rows[1]).abs().max() > 1e-3
    monkeypatch.setattr("eval.extractors.imagebind.CLIPS_AT_ONCE", 100)
    torch.testing.assert_close(small.embed_frames(frames), parts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(small.embed(waves).rows, together.rows, atol=1e-5, rtol=1e-5)


def test_waves_that_do_not_fit_are_refused(small):
    assert small.embed(draw(1, 400)).rows.shape == (1, 12)
    with pytest.raises(ValueError, match=r"ImageBind needs clips of at least 0.025 s \(400 samples\)"):
        small.embed(draw(1, 399))
    with pytest.raises(ValueError, match=r"ImageBind needs waves \(clips, samples\)"):
        small.embed(torch.zeros(32_000))
    with pytest.raises(ValueError, match="finite"):
        small.embed(torch.full((1, 32_000), math.inf))


# Files


def test_name_licence_and_what_is_left(small, tmp_path):
    model: EmbeddingModel = small
    assert model.sample_rate == 16_000
    assert model.dimensions == 12
    assert model.name == f"imagebind-huge-v1@16000:{file_digest(small.loaded.path)}"
    assert small.loaded.published is False
    assert "CC BY-NC-SA 4.0" in IMAGEBIND_HUGE.licence
    assert not any(p.requires_grad for p in small.network.parameters())
    assert not small.network.training
    # The other towers are in the file of `small` and may as well be absent; the name tells the files apart.
    without = ImageBind.load(written(tmp_path, small_tensors()), config=SMALL)
    assert torch.equal(without.embed(draw(1, 40_000)).rows, small.embed(draw(1, 40_000)).rows)
    assert without.name != small.name


def test_minus_infinity_in_the_text_towers_mask_is_no_damage(tmp_path, small):
    mask = torch.full((77, 77), -math.inf).triu(1)
    tensors = small_tensors() | {"modality_preprocessors.text.mask": mask}
    made = ImageBind.load(written(tmp_path, tensors), config=SMALL)
    assert torch.equal(made.embed(draw(1, 40_000)).rows, small.embed(draw(1, 40_000)).rows)


TRUNK = "modality_trunks.audio.blocks.1.attn"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{TRUNK}.bias_k"), rf"1 missing \({TRUNK}.bias_k\)"),
        (lambda t: t.update({f"{TRUNK}.bias_q": torch.zeros(1)}), rf"1 unexpected \({TRUNK}.bias_q\)"),
        (lambda t: t.update({"modality_trunks.smell.blocks.0.norm_1.bias": torch.zeros(1)}), "1 unexpected"),
        (lambda t: t.update({f"{TRUNK}.bias_v": torch.zeros(24)}), r"bias_v \(24,\) instead of \(1, 1, 24\)"),
        (lambda t: t.update({f"{TRUNK}.bias_v": torch.full((1, 1, 24), math.nan)}), "NaN"),
        (lambda t: t.update({"epoch": 3}), "something else than tensors"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, change, message):
    tensors = small_tensors()
    change(tensors)
    path = written(tmp_path, tensors)
    with pytest.raises(WeightsError, match=message) as caught:
        ImageBind.load(path, config=SMALL)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_sizes_and_absent_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"is not imagebind_huge\.pth: .* missing"):
        ImageBind.load(written(tmp_path, small_tensors()))
    with pytest.raises(WeightsError, match=r"absent\.pth is not there"):
        ImageBind.load(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="heads must divide width 24, got 5"):
        TowerConfig(width=24, depth=1, heads=5)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        TowerConfig(width=24, depth=0, heads=3)
    with pytest.raises(ValueError, match="dimensions must be at least 1, got 0"):
        ImageBindConfig(dimensions=0)
