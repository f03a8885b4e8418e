"""Embedded features, classifier and k-means labels."""

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from eval.features.embedded import (
    LENGTH,
    NUM_BANDS,
    NUM_GROUPS,
    EmbeddedAudioFeatures,
    EmbeddedClassifier,
    labels_are_useful,
    pseudo_labels,
)
from eval.metrics.moments.distance import frechet_distance
from eval.metrics.moments.gaussian import GaussianStats

RATE = 16_000
FEATURES = EmbeddedAudioFeatures(sample_rate=RATE)


def sounds(kind, count, seed):
    """Clips of 1 s: "hits" (decaying tones), "hum" (steady tones) or "hiss" (low-passed noise)."""
    rng = np.random.default_rng(seed)
    t = np.arange(RATE) / RATE
    clips = []
    for _ in range(count):
        frequency, start = rng.uniform(300, 2500), rng.uniform(0.1, 0.6)
        tone = np.sin(2 * np.pi * frequency * t)
        if kind == "hits":
            wave = tone * np.where(t >= start, np.exp(-(t - start) / 0.08), 0.0)
        elif kind == "hum":
            wave = 0.3 * tone
        else:
            wave = lfilter([0.1], [1, -rng.uniform(0.5, 0.95)], rng.normal(size=RATE))
        clips.append(wave + 0.003 * rng.normal(size=RATE))
    return torch.from_numpy(np.stack(clips)).float()


def stats(waves):
    return GaussianStats.from_features(FEATURES(waves))


def test_shape_type_and_name():
    features = FEATURES(sounds("hits", 3, 0))
    assert features.shape == (3, LENGTH)
    assert features.dtype == torch.float32
    assert "embedded" in FEATURES.name


def test_a_clip_does_not_depend_on_its_batch():
    waves = torch.cat([sounds("hits", 40, 1), sounds("hiss", 40, 2)])  # more than one chunk of 64
    together = FEATURES(waves)
    for k in (0, 45, 79):
        torch.testing.assert_close(FEATURES(waves[k : k + 1])[0], together[k], rtol=0, atol=1e-5)


def test_silence_and_full_scale_are_finite_and_of_ordinary_size():
    waves = torch.stack([torch.zeros(RATE), torch.ones(RATE), torch.rand(RATE) * 2 - 1])
    assert FEATURES(waves).abs().max() < 30


def test_over_smoothed_spectrograms_are_further_from_the_truth_than_other_real_clips():
    # Averaging neighbouring frames of the spectrogram is what a blurred generation does.
    def smoothed(waves):
        window = torch.hann_window(512)
        spectrum = torch.stft(waves, 512, 128, window=window, return_complex=True)
        power = spectrum.abs().square()
        blurred = torch.nn.functional.avg_pool2d(power[:, None], (1, 9), 1, (0, 4))[:, 0].sqrt()
        return torch.istft(torch.polar(blurred, spectrum.angle()), 512, 128, window=window, length=waves.shape[1])

    real, other = sounds("hits", 120, 3), sounds("hits", 120, 4)
    texture = slice(2 * NUM_BANDS + 4 * NUM_GROUPS, 2 * NUM_BANDS + 5 * NUM_GROUPS)  # along time, six groups
    assert (FEATURES(smoothed(other))[:, texture] < FEATURES(other)[:, texture]).float().mean() > 0.95
    assert frechet_distance(stats(real), stats(smoothed(other))) > 2 * frechet_distance(stats(real), stats(other))


def test_kinds_of_sound_are_further_apart_than_halves_of_one_kind():
    floor = frechet_distance(stats(sounds("hits", 100, 5)), stats(sounds("hits", 100, 6)))
    assert frechet_distance(stats(sounds("hits", 100, 5)), stats(sounds("hum", 100, 6))) > 10 * floor


def test_bad_waves_are_refused():
    with pytest.raises(ValueError, match=r"at least 0\.5 s"):
        FEATURES(torch.zeros(2, 100))
    with pytest.raises(ValueError, match="finite"):
        FEATURES(torch.full((1, RATE), float("nan")))
    with pytest.raises(ValueError, match="at least 8000 Hz, got 10"):
        EmbeddedAudioFeatures(sample_rate=10)


def labelled(seed):
    kinds = ("hits", "hum", "hiss")
    waves = torch.cat([sounds(kind, 30, seed + k) for k, kind in enumerate(kinds)])
    return FEATURES(waves), [kind for kind in kinds for _ in range(30)]


def test_classifier_learns_kinds_of_sound_and_survives_a_round_trip(tmp_path):
    classifier = EmbeddedClassifier.fit(*labelled(10))
    features, labels = labelled(20)
    assert classifier.classes == ("hiss", "hits", "hum")
    assert classifier.accuracy(features, labels) > 0.95
    classifier.save(tmp_path / "classifier.safetensors")
    again = EmbeddedClassifier.load(tmp_path / "classifier.safetensors")
    assert again.classes == classifier.classes
    assert torch.equal(again.logits(features), classifier.logits(features))


def test_classifier_is_deterministic_and_at_its_optimum():
    features, labels = labelled(10)
    first, second = EmbeddedClassifier.fit(features, labels), EmbeddedClassifier.fit(features, labels)
    assert torch.equal(first.weight, second.weight)
    # Gradient of mean cross-entropy + ridge/2 ||w||^2 with ridge 0.01: X^T (P - Y) / n + ridge W, and mean (P - Y).
    rows = (features.double() - first.centre) / first.scale
    target = torch.tensor([[label == name for name in first.classes] for label in labels], dtype=torch.float64)
    error = (first.logits(features).softmax(dim=1) - target) / len(labels)
    assert (rows.T @ error + 0.01 * first.weight).abs().max() < 1e-4
    assert error.sum(dim=0).abs().max() < 1e-4


def test_classifier_refuses_useless_labels_and_foreign_files(tmp_path):
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="2 classes"):
        EmbeddedClassifier.fit(features, ["a"] * 4)
    with pytest.raises(ValueError, match="must not be empty, 1 are"):
        EmbeddedClassifier.fit(features, ["a", "b", "", "a"])
    with pytest.raises(ValueError, match="3 labels, 4 rows"):
        EmbeddedClassifier.fit(features, ["a", "b", "a"])
    (tmp_path / "x.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ValueError, match="not a safetensors file"):
        EmbeddedClassifier.load(tmp_path / "x.safetensors")


def test_which_labels_are_useful():
    assert labels_are_useful(["a", "b", "a", "b"])
    assert not labels_are_useful(["", "", "", ""])
    assert not labels_are_useful(["a", "a", "a"])
    assert not labels_are_useful(["a", "b", "c", "d"])


def test_pseudo_labels_find_separated_groups_and_depend_on_the_seed_only():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(3), 20)
    features = rng.normal(size=(60, 4)) * 0.1 + 5 * np.eye(4)[groups]
    labels = pseudo_labels(features, 3, seed=0)
    assert labels == pseudo_labels(features, 3, seed=0)
    assert len({(label, group) for label, group in zip(labels, groups, strict=True)}) == 3
    assert all(label.startswith("cluster-") for label in labels)
    with pytest.raises(ValueError, match="num_classes must be between 2"):
        pseudo_labels(features, 1, seed=0)
