"""The DeSync extractor: which segments are scored, strict files, what is refused, and the recorded logits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eval.extractors.base import LoadedFile
from eval.extractors.synchformer import DesyncExtractor, as_segments, official
from eval.metrics.desync import DeSync
from teacher.encoders.synchformer import VisualConfig, load_sync_encoder
from teacher.encoders.synchformer_sync import AudioConfig, OffsetConfig, Synchformer, SynchformerConfig
from teacher.files import file_digest
from teacher.files.errors import WeightsError
from teacher.media import FrameRequest
from teacher.network.sequence import sync_segments, sync_video_frames
from tests.golden.recipe import Recording, recipe_tensor
from tests.golden.sync import recorded_input

SMALL = SynchformerConfig(
    visual=VisualConfig(width=64, depth=1, heads=1, hidden=20, patch=2, patches=9),
    audio=AudioConfig(width=64, depth=1, heads=1, hidden=24),
    head=OffsetConfig(width=16, depth=1, heads=8, hidden=24),
)
PIXELS = FrameRequest(fps=25, height=6, width=6, fit="crop")


def small_tensors() -> dict[str, torch.Tensor]:
    """Uniform in [-0.5, 0.5] by name, around one for the gains of norms."""
    with torch.device("meta"):
        shapes = {name: list(tensor.shape) for name, tensor in Synchformer(SMALL).state_dict().items()}
    gains = ("norm", "ln", "layernorm")
    return {
        n: recipe_tensor(
            "desync", n, s, 0.5, float(n.endswith(".weight") and len(s) == 1 and any(g in n for g in gains))
        )
        for n, s in shapes.items()
    }


def written(folder: Path, tensors: object) -> Path:
    path = folder / official().file
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> DesyncExtractor:
    path = written(tmp_path_factory.mktemp("sync"), small_tensors())
    return replace(DesyncExtractor.load(path, config=SMALL), request=PIXELS)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pixels(frames: int) -> torch.Tensor:
    return torch.randint(0, 256, (frames, 3, 6, 6), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


# Lengths and windows


def test_eight_seconds_are_24_segments_of_both_senses(small):
    assert sync_video_frames(8.0) == 200
    assert small.visual_features(pixels(200)).shape == (24, 8, 64)  # (200 - 16) // 8 + 1
    assert small.audio_features(0.1 * draw(2, 128_000)).shape == (2, 24, 6, 64)  # (128 000 - 10 240) // 5120 + 1
    assert sync_segments(8.0) == 24
    # A vocoder's last frame runs over: 44.1 kHz clips of 8 s are 353 280 samples long, 128 174 of them at 16 kHz.
    assert small.audio_features(0.1 * draw(1, 128_174)).shape[1] == 24


def test_first_and_last_fourteen_segments_are_judged(small):
    visual, audio = draw(2, 24, 8, 64), draw(2, 24, 6, 64, seed=1)
    made = small.logits(visual, audio)
    assert made.shape == (2, 2, 21)
    with torch.no_grad():
        for window, (start, stop) in enumerate(((0, 14), (10, 24))):
            expected = small.network.logits(visual[:, start:stop], audio[:, start:stop])
            torch.testing.assert_close(made[:, window], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("segment", "first", "last"),
    [(0, True, False), (9, True, False), (10, True, True), (13, True, True), (14, False, True), (23, False, True)],
)
@pytest.mark.parametrize("sense", [0, 1])
def test_a_segment_counts_in_the_windows_it_is_in(small, segment, first, last, sense):
    features = [draw(1, 24, 8, 64), draw(1, 24, 6, 64, seed=1)]
    before = small.logits(*features)
    features[sense] = features[sense].clone()
    features[sense][:, segment] += draw(*features[sense][:, segment].shape, seed=2)
    change = (small.logits(*features) - before).abs().amax(-1)[0]
    assert (change > 1e-4).tolist() == [first, last]


def test_shortest_clip_is_judged_twice_on_the_same(small):
    made = small.logits(draw(1, 14, 8, 64), draw(1, 14, 6, 64, seed=1))
    assert torch.equal(made[:, 0], made[:, 1])
    assert small.visual_features(pixels(120)).shape[0] == sync_segments(4.8) == 14
    with pytest.raises(ValueError, match=r"at least 14 segments \(4.80 s\)"):
        small.logits(draw(1, 13, 8, 64), draw(1, 13, 6, 64))


def test_frames_and_waves_to_seconds(small):
    seen, waves = small.visual_features(pixels(200)), 0.1 * draw(2, 128_000)
    logits = small.logits(seen.expand(2, -1, -1, -1), small.audio_features(waves))
    assert (logits[0] - logits[1]).abs().max() > 1e-4
    result = DeSync.from_logits(logits[:, 0], logits[:, 1])
    expected = -2.0 + 0.2 * logits.argmax(-1).double()
    assert result.offsets_s == pytest.approx(expected.numpy())


def test_stored_features_are_the_ones_that_are_seen(small, tmp_path):
    """The generator's encoder makes the same features, in a row, under the name that `visual_name` gives."""
    path = tmp_path / "synchformer.safetensors"
    save_file(small_tensors(), path)
    encoder = replace(load_sync_encoder(path), request=PIXELS)
    stored = encoder(pixels(64))
    assert stored.shape == (56, 64)
    assert torch.equal(as_segments(stored), small.visual_features(pixels(64)))
    assert encoder.name == small.visual_name
    with pytest.raises(ValueError, match=r"features must be \(\.\.\., 8 segments, width\), got \(55, 64\)"):
        as_segments(stored[:55])


def test_a_clip_does_not_depend_on_its_batch(small, monkeypatch):
    visual, waves = draw(5, 14, 8, 64), 0.1 * draw(5, 76_800, seed=1)
    monkeypatch.setattr("eval.extractors.synchformer.CLIPS_AT_ONCE", 2)
    together = small.logits(visual, small.audio_features(waves))
    for k in (0, 3, 4):
        torch.testing.assert_close(
            together[k : k + 1],
            small.logits(visual[k : k + 1], small.audio_features(waves[k : k + 1])),
            atol=2e-5,
            rtol=2e-5,
        )
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("visual", "audio", "message"),
    [
        ((1, 24, 8, 64), (1, 23, 6, 64), "equally many segments, got 1 x 24 and 1 x 23; cut both to one length"),
        ((2, 24, 8, 64), (1, 24, 6, 64), "same clips .*, got 2 x 24 and 1 x 24"),
        ((1, 192, 64), (1, 24, 6, 64), r"visual must be \(clips, segments, slots, width\), got \(1, 192, 64\)"),
        ((1, 24, 8, 64), (24, 6, 64), r"audio must be \(clips, segments, slots, width\), got \(24, 6, 64\)"),
        ((1, 24, 7, 64), (1, 24, 6, 64), "must be 196 together"),
    ],
)
def test_features_that_do_not_fit_are_refused(small, visual, audio, message):
    with pytest.raises(ValueError, match=message):
        small.logits(torch.zeros(visual), torch.zeros(audio))


def test_frames_and_waves_that_do_not_fit_are_refused(small):
    with pytest.raises(ValueError, match=r"uint8 of shape \(T, 3, 6, 6\)"):
        small.visual_features(pixels(20).float())
    with pytest.raises(ValueError, match="at least 16"):
        small.visual_features(pixels(15))
    with pytest.raises(ValueError, match=r"Synchformer needs clips of at least 0\.64 s \(10240 samples\)"):
        small.audio_features(torch.zeros(1, 10_239))
    with pytest.raises(ValueError, match="finite"):
        small.audio_features(torch.full((1, 16_000), float("inf")))


# Files


def test_official_and_converted_files_are_the_same_model(small, tmp_path):
    path = tmp_path / "synchformer.safetensors"
    save_file(small_tensors(), path)
    converted = DesyncExtractor.load(path, config=SMALL)
    assert converted.name == small.name == f"synchformer-v1@16000:{small.digest}"
    assert converted.loaded == LoadedFile(path=path, digest=file_digest(path), published=None)
    assert converted.loaded.digest != small.loaded.digest
    changed = small_tensors() | {"vproj.bias": torch.zeros(16)}
    other = DesyncExtractor.load(written(tmp_path, changed), config=SMALL)
    assert other.name != small.name
    assert other.visual_name == small.visual_name
    assert other.sample_rate == 16_000
    assert not any(p.requires_grad for p in other.network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.OFF_tok"), r"1 missing \(transformer.OFF_tok\)"),
        (lambda t: t.update({"transformer.x": torch.zeros(1)}), r"1 unexpected \(transformer.x\)"),
        (lambda t: t.update({"vproj.bias": torch.zeros(3)}), r"vproj.bias \(3,\) instead of \(16,\)"),
        (lambda t: [t.pop(n) for n in list(t) if not n.startswith("vfeat_extractor.")], "missing .*afeat_extractor"),
        (lambda t: t.update({"vproj.bias": torch.full((16,), float("nan"))}), "NaN"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, change, message):
    tensors = small_tensors()
    change(tensors)
    path = written(tmp_path, tensors)
    with pytest.raises(WeightsError, match=message) as caught:
        DesyncExtractor.load(path, config=SMALL)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_sizes_are_refused(small):
    with pytest.raises(WeightsError, match="instead of"):
        DesyncExtractor.load(small.loaded.path)


@pytest.mark.slow
def test_recorded_audio_features_and_logits(recordings):
    """At the published sizes: 8e-6 of the largest value is what float32 leaves (tests/golden/sync.py)."""
    recording = Recording.read(recordings, "F3_sync_audio_and_head")
    with torch.device("meta"):
        network = Synchformer(SynchformerConfig())
    network.load_state_dict(recording.parameters(), strict=True, assign=True)
    loaded = LoadedFile(path=recordings, digest="", published=None)
    extractor = DesyncExtractor(network=network, loaded=loaded, digest="", visual_name="")
    sound_features = extractor.audio_features(recorded_input(recording, "waveform"))
    logits = extractor.logits(*(recorded_input(recording, f"{sense}_features") for sense in ("visual", "audio")))
    expected = recording.tensors["out.audio.features"], recording.tensors["out.logits"]
    for made, recorded in zip((sound_features, logits[:, 0], logits[:, 1]), (*expected, expected[1]), strict=True):
        assert float((made - recorded).abs().max() / recorded.abs().max()) <= 8e-6
