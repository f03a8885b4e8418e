"""Scores of held-out sound: zero for equal sounds, closed forms, silence and few clips."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.features.embedded import EmbeddedAudioFeatures
from scripts.scores import embedded_scores
from teacher.features.store import Record

RATE = 16000
ONSETS = ["onset_precision", "onset_recall", "onset_f1"]


def record(k, label=""):
    return Record(
        id=str(k), item_id=str(k), path="", start_s=0.0, duration_s=1.0, caption="", label=label, events_s=None,
        has_video=False, has_audio=True,
    )  # fmt: skip


RECORDS = [record(k) for k in range(16)]


@pytest.fixture(scope="module")
def waves():
    """Sixteen decaying tones that start at 0.3 s and again at 0.5 s or later, in faint noise."""
    g, t = torch.Generator().manual_seed(0), torch.arange(RATE) / RATE
    made = []
    for k in range(16):
        wave = 1e-3 * torch.randn(RATE, generator=g)
        for start in (0.3, 0.5 + 0.02 * k):
            age = (t - start).clamp_min(0)
            wave = wave + 0.4 * torch.sin(2 * torch.pi * (300 + 150 * k) * age) * torch.exp(-20 * age) * (t >= start)
        made.append(wave)
    return torch.stack(made)


def test_equal_sounds_are_at_no_distance(waves):
    scores = embedded_scores()(waves, waves, RATE, RECORDS)
    assert scores["feature_distance"] == scores["kl"] == 0
    assert scores["frechet_diagonal"] < 1e-9
    assert [scores[name] for name in ONSETS] == [1, 1, 1]


def test_distances_are_what_their_formulas_say(waves):
    """Mean squared distance of pairs; (difference of means)^2 + (difference of standard deviations)^2 per feature."""
    g = torch.Generator().manual_seed(1)
    made = waves + 0.01 * torch.randn(waves.shape, generator=g)
    scores = embedded_scores()(made, waves, RATE, RECORDS)
    extract = EmbeddedAudioFeatures(sample_rate=RATE)
    a, b = extract(made).double().numpy(), extract(waves).double().numpy()
    assert scores["feature_distance"] == pytest.approx(((a - b) ** 2).sum(1).mean())
    means, spreads = a.mean(0) - b.mean(0), a.std(0, ddof=1) - b.std(0, ddof=1)
    assert scores["frechet_diagonal"] == pytest.approx((means**2).sum() + (spreads**2).sum(), rel=1e-6)
    assert scores["kl"] > 0


def test_a_set_in_another_order_is_the_same_set_but_other_pairs(waves):
    scores = embedded_scores()(waves.flip(0), waves, RATE, RECORDS)
    assert scores["frechet_diagonal"] < 1e-9
    assert scores["feature_distance"] > 1
    assert scores["kl"] > 0
    assert scores["onset_f1"] < 1


def test_onsets_missed_and_invented_are_told_apart(waves):
    """Of two onsets a clip the second is cut off: all that is heard is right, half is missing; and the reverse."""
    half = waves.clone()
    half[:, int(0.45 * RATE) :] = 1e-3 * torch.randn(half[:, int(0.45 * RATE) :].shape)
    fewer, more = embedded_scores()(half, waves, RATE, RECORDS), embedded_scores()(waves, half, RATE, RECORDS)
    assert fewer["onset_precision"] > 0.9
    assert fewer["onset_recall"] < 0.6
    assert (more["onset_precision"], more["onset_recall"]) == (fewer["onset_recall"], fewer["onset_precision"])


def test_labels_of_the_clips_are_the_classes_where_they_are_useful(waves):
    """With labels the classes are those; another labelling is another divergence, too few clips a class are none."""
    made = waves.roll(1, 0)
    unlabelled = embedded_scores()(made, waves, RATE, RECORDS)["kl"]
    labelled = [replace(r, label="low" if k < 8 else "high") for k, r in enumerate(RECORDS)]
    singles = [replace(r, label=str(k)) for k, r in enumerate(RECORDS)]
    assert embedded_scores()(made, waves, RATE, labelled)["kl"] != unlabelled
    assert embedded_scores()(made, waves, RATE, singles)["kl"] == unlabelled


@pytest.mark.parametrize(("count", "names"), [(1, set()), (2, {"frechet_diagonal"}), (7, {"frechet_diagonal"})])
def test_few_clips_have_fewer_scores(waves, count, names):
    scores = embedded_scores()(waves[:count].roll(1, 1), waves[:count], RATE, RECORDS[:count])
    assert set(scores) == names | {"feature_distance", *ONSETS}
    assert all(np.isfinite(value) for value in scores.values())


def test_silence_is_scored_like_any_sound(waves):
    silence = torch.zeros_like(waves)
    both = embedded_scores()(silence, silence, RATE, RECORDS)
    assert both == {"feature_distance": 0, "frechet_diagonal": pytest.approx(0, abs=1e-9)} | dict.fromkeys(ONSETS, 1)
    made, wanted = embedded_scores()(silence, waves, RATE, RECORDS), embedded_scores()(waves, silence, RATE, RECORDS)
    assert made["onset_f1"] == wanted["onset_f1"] == 0
    assert made["feature_distance"] == wanted["feature_distance"] > 1
    assert "kl" not in wanted  # silence sixteen times over is no two classes
    assert all(np.isfinite(value) for value in (made | wanted).values())


def test_random_states_are_left_alone(waves):
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    embedded_scores()(waves.roll(1, 0), waves, RATE, RECORDS)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
