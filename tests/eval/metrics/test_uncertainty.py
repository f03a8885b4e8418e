"""Intervals: coverage on simulated data, pairing, seeds, closed forms."""

import numpy as np
import pytest
import torch

from eval.metrics.inception import inception_jackknife
from eval.metrics.kernel import kernel_jackknife
from eval.metrics.moments.distance import frechet_distance
from eval.metrics.uncertainty import Interval, Jackknife, bootstrap_interval, group_labels, jackknife, paired_difference


def share_covered(found, truth):
    return np.mean([interval.low <= truth <= interval.high for interval in found])


def test_bootstrap_covers_the_mean_about_95_times_in_100():
    # 300 sets of 60: the percentile interval of a mean covers about 94 %; standard error of the share 1.4 %.
    rng = np.random.default_rng(0)
    share = share_covered([bootstrap_interval(rng.normal(3.0, 2.0, 60), draws=300, seed=k) for k in range(300)], 3.0)
    assert 0.90 < share < 0.98


def test_bootstrap_width_is_that_of_the_normal_interval():
    scores = np.random.default_rng(1).normal(size=500)
    found = bootstrap_interval(scores)
    assert found.value == pytest.approx(scores.mean(), rel=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.96 * scores.std() / np.sqrt(500), rel=0.1)
    assert bootstrap_interval(scores, level=0.5).high < found.high
    assert found == bootstrap_interval(scores)
    assert found != bootstrap_interval(scores, seed=1)
    assert (found.count, found.level, found.seed) == (500, 0.95, 0)


def test_bootstrap_of_a_ratio_of_sums():
    # F1 from hits, misses and false alarms per clip: 2 hits / (2 hits + misses + false alarms).
    counts = np.array([[4, 0, 0], [2, 2, 1], [0, 3, 0], [5, 0, 2]] * 10)

    def f1(means):
        return 2 * means[:, 0] / (2 * means[:, 0] + means[:, 1] + means[:, 2])

    found = bootstrap_interval(counts, statistic=f1)
    assert found.value == pytest.approx(22 / (22 + 5 + 3))
    assert found.low < found.value < found.high
    with pytest.raises(ValueError, match="need a statistic"):
        bootstrap_interval(counts)
    with pytest.raises(ValueError, match="not finite in 100 of 100 draws"):
        bootstrap_interval(counts, statistic=lambda means: np.full(len(means), np.nan), draws=100)
    with pytest.raises(ValueError, match="one value per draw"):
        bootstrap_interval(counts, statistic=lambda means: means)


@pytest.mark.parametrize(
    ("scores", "options", "reason"),
    [
        ([1.0], {}, "at least 2 clips"),
        ([1.0, np.nan], {}, "1 entries are not"),
        ([1.0, 2.0], {"level": 1.0}, "level must be between 0 and 1"),
        ([1.0, 2.0], {"draws": 5}, "draws must be at least 100"),
    ],
)
def test_bootstrap_refuses(scores, options, reason):
    with pytest.raises(ValueError, match=reason):
        bootstrap_interval(scores, **options)


def test_pairing_narrows_the_interval_and_finds_a_small_difference():
    # Clip difficulty has standard deviation 1, the difference 0.05 +- 0.1 over 200 clips: 7 standard errors.
    rng = np.random.default_rng(2)
    clips = rng.normal(size=200)
    student, teacher = clips + 0.05 + 0.1 * rng.normal(size=200), clips
    found = paired_difference(student, teacher)
    alone = bootstrap_interval(student)
    assert found.interval.low > 0.0
    assert found.p_value < 1e-6
    assert found.interval.high - found.interval.low < 0.2 * (alone.high - alone.low)
    back = paired_difference(teacher, student)
    assert back.interval.value == -found.interval.value
    assert back.p_value == pytest.approx(found.p_value)


def test_paired_p_value_is_the_exact_count_and_equal_sides_give_one():
    # Five positive differences: 2 of 2^5 sign patterns are as extreme.
    found = paired_difference([1.0, 2.0, 3.0, 4.0, 5.0, 7.0], [0.9, 1.8, 2.7, 3.6, 4.5, 7.0])
    assert found.zeros == 1
    assert paired_difference([1.0, 2.0, 3.0, 4.0, 5.0], [0.9, 1.8, 2.7, 3.6, 4.5]).p_value == pytest.approx(2 / 32)
    equal = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (equal.p_value, equal.zeros, equal.interval.low, equal.interval.high) == (1.0, 2, 0.0, 0.0)
    with pytest.raises(ValueError, match="one length"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


def test_paired_difference_rejects_equal_laws_five_times_in_100():
    rng = np.random.default_rng(3)
    p_values = [paired_difference(*rng.normal(size=(2, 40)), draws=100).p_value for _ in range(250)]
    assert 0.015 < np.mean(np.array(p_values) < 0.05) < 0.095


def test_jackknife_of_a_mean_is_the_textbook_error_with_one_clip_per_group():
    x = np.random.default_rng(4).normal(size=30)
    found = jackknife(lambda z: float(z.mean()), x, groups=30)
    assert found.standard_error == pytest.approx(x.std(ddof=1) / np.sqrt(30), rel=1e-12)
    assert found.corrected == pytest.approx(x.mean(), rel=1e-12)
    # t quantile of 29 degrees of freedom at 97.5 %: 2.04523.
    interval = found.interval()
    assert (interval.high - interval.low) / 2 == pytest.approx(2.04523 * found.standard_error, rel=1e-5)


def test_jackknife_takes_the_bias_of_order_one_over_n_away():
    # The variance with divisor n is biased by -1/n; corrected it is the one with divisor n - 1.
    x = np.random.default_rng(5).normal(size=24)
    assert jackknife(lambda z: float(z.var()), x, groups=24).corrected == pytest.approx(x.var(ddof=1), rel=1e-12)


def test_jackknife_covers_frechet_distances_about_95_times_in_100():
    # Unit Gaussians in 3 dimensions, 0.8 apart in each: distance 1.92. What 400 clips add on average is
    # (2 / 400) (5/4 3 + 1/2 9 / 2) = 0.03, known to about 10 % from 100 draws.
    rng = np.random.default_rng(6)
    found = [
        jackknife(frechet_distance, rng.normal(size=(400, 3)), rng.normal(size=(400, 3)) + 0.8, groups=12)
        for _ in range(100)
    ]
    assert 0.88 < share_covered([one.interval(corrected=True) for one in found], 1.92) <= 0.99
    assert np.mean([one.value - one.corrected for one in found]) == pytest.approx(0.03, rel=0.3)


def test_jackknife_covers_kernel_distances_about_95_times_in_100():
    # d = 2, bandwidth 1.5, shift 1 in each: 200 (s^2 / (s^2 + 2)) (1 - exp(-2 / (2 (s^2 + 2)))).
    rng, square = np.random.default_rng(7), 1.5**2
    truth = 200 * square / (square + 2) * (1 - np.exp(-1 / (square + 2)))
    found = [
        kernel_jackknife(rng.normal(size=(100, 2)), rng.normal(size=(80, 2)) + 1.0, bandwidth=1.5, groups=10, seed=k)
        for k in range(100)
    ]
    assert 0.88 < share_covered([one.interval() for one in found], truth) <= 0.99


def test_jackknife_covers_the_inception_score_about_95_times_in_100():
    # Posteriors sure of one of 4 classes drawn with these odds: the score is exp of their entropy.
    rng, odds = np.random.default_rng(8), np.array([0.4, 0.3, 0.2, 0.1])
    truth = np.exp(-(odds * np.log(odds)).sum())
    found = []
    for k in range(100):
        classes = torch.from_numpy(rng.choice(4, size=400, p=odds))
        logits = 60.0 * torch.nn.functional.one_hot(classes, 4)
        found.append(inception_jackknife(logits, splits=1, group_seed=k).interval(corrected=True))
    assert 0.88 < share_covered(found, truth) <= 0.99


def test_paired_difference_of_corpus_scores_is_narrower_than_the_two_apart():
    rng = np.random.default_rng(9)
    reference = rng.normal(size=(300, 3))
    teacher = reference + 0.3 + 0.3 * rng.normal(size=(300, 3))
    student = teacher + 0.2 + 0.05 * rng.normal(size=(300, 3))
    scores = [jackknife(frechet_distance, reference, side) for side in (student, teacher)]
    difference = scores[0].minus(scores[1])
    assert difference.value == scores[0].value - scores[1].value
    assert difference.interval().low > 0.0
    assert difference.standard_error < 0.8 * np.hypot(*(score.standard_error for score in scores))
    with pytest.raises(ValueError, match="equal groups, clips and seed"):
        scores[0].minus(jackknife(frechet_distance, reference, teacher, seed=1))


def test_groups_are_balanced_shared_by_paired_samples_and_seeded():
    first, second, third = group_labels((23, 23, 30), groups=5, seed=1)
    assert (first == second).all()
    assert sorted(np.bincount(first)) == [4, 4, 5, 5, 5]
    assert (np.bincount(third) == 6).all()
    assert (group_labels((23,), groups=5, seed=2)[0] != first).any()
    with pytest.raises(ValueError, match="at least 20 clips for 20 groups"):
        group_labels((19,))
    with pytest.raises(ValueError, match="groups must be at least 2"):
        group_labels((19,), groups=1)


def test_wrong_values_are_refused():
    with pytest.raises(ValueError, match="finite"):
        Jackknife(value=1.0, replicates=(1.0, np.nan), counts=(9,), seed=0)
    with pytest.raises(ValueError, match="low must not be above high"):
        Interval(value=0.0, low=1.0, high=0.0, level=0.9, method="", count=3, seed=0)
    with pytest.raises(ValueError, match="samples must be at least one"):
        jackknife(lambda: 1.0)
