"""Cosine scores in closed cases, and the level that wrongly paired clips reach."""

import numpy as np
import pytest
import torch

from eval.metrics.alignment import AlignmentScore, derangement, mean_of_unit_parts, paired_cosines


def rows(seed, clips=12, d=7):
    return np.random.default_rng(seed).normal(size=(clips, d))


def test_identical_is_one_opposite_is_minus_one_and_lengths_do_not_matter():
    a = rows(0)
    np.testing.assert_allclose(paired_cosines(a, 3.0 * a), 1.0, rtol=1e-14)
    np.testing.assert_allclose(paired_cosines(a, -0.1 * a), -1.0, rtol=1e-14)  # and nothing is clipped at 0
    np.testing.assert_allclose(paired_cosines(np.array([[3.0, 4.0]]), np.array([[4.0, 3.0]])), 24 / 25)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_range_of_the_numbers_does_not_matter(scale):
    np.testing.assert_allclose(paired_cosines(scale * rows(1), rows(2)), paired_cosines(rows(1), rows(2)), rtol=1e-12)


def test_score_is_the_mean_and_each_clip_keeps_its_value_whatever_the_order_and_batch():
    a, b = rows(3), rows(4)
    score = AlignmentScore.from_embeddings(a, b)
    expected = [x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(score.per_clip, expected, rtol=1e-12)
    assert score.mean == pytest.approx(np.mean(expected), rel=1e-12)
    order = np.random.default_rng(5).permutation(12)
    turned = AlignmentScore.from_embeddings(a[order], b[order])
    assert (turned.per_clip == score.per_clip[order]).all()
    assert turned.chance == pytest.approx(score.chance, rel=1e-12)
    parts = [paired_cosines(a[k : k + 5], b[k : k + 5]) for k in (0, 5, 10)]
    assert (np.concatenate(parts) == score.per_clip).all()


def test_torch_and_numpy_give_the_same():
    a, b = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    assert (paired_cosines(a, b) == paired_cosines(a.numpy(), b.numpy())).all()


@pytest.mark.parametrize("count", [2, 3, 4, 50])
def test_derangement_is_a_permutation_that_moves_everything_and_repeats_with_its_seed(count):
    for seed in range(50):
        order = derangement(count, seed=seed)
        assert sorted(order) == list(range(count))
        assert (order != np.arange(count)).all()
        assert (order == derangement(count, seed=seed)).all()


def test_all_nine_derangements_of_four_are_equally_likely():
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(1800):
        key = tuple(derangement(4, seed=seed).tolist())
        counts[key] = counts.get(key, 0) + 1
    # 200 each, standard deviation 13; a single cycle shift or Sattolo's cycles alone would leave some out.
    assert len(counts) == 9
    assert all(abs(n - 200) < 60 for n in counts.values())


def test_chance_is_the_mean_over_every_wrong_pair_and_over_derangements():
    a, b = rows(6) + 1.0, rows(7) + 1.0  # a common direction: chance is far from 0
    score = AlignmentScore.from_embeddings(a, b, seed=3)
    all_pairs = (a / np.linalg.norm(a, axis=1)[:, None]) @ (b / np.linalg.norm(b, axis=1)[:, None]).T
    assert score.chance == pytest.approx(all_pairs[~np.eye(12, dtype=bool)].mean(), rel=1e-12)
    np.testing.assert_allclose(score.shuffled, all_pairs[np.arange(12), derangement(12, seed=3)], rtol=1e-12)
    drawn = [AlignmentScore.from_embeddings(a, b, seed=seed).shuffled.mean() for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(score.chance, abs=4 * np.std(drawn) / 20)
    assert score.chance > 0.2


def test_unrelated_embeddings_score_as_much_as_chance():
    # Cosines of independent directions in 64 dimensions: sd 1/8, so 0.004 for the mean of 1000.
    score = AlignmentScore.from_embeddings(rows(8, 1000, 64), rows(9, 1000, 64))
    assert abs(score.mean) < 0.016
    assert abs(score.shuffled.mean()) < 0.016


def test_parts_count_by_direction_alone():
    parts = np.array([[[5.0, 0.0], [0.0, 0.1]], [[1.0, 0.0], [1.0, 0.0]]])
    np.testing.assert_allclose(mean_of_unit_parts(parts), [[0.5, 0.5], [1.0, 0.0]])
    np.testing.assert_allclose(mean_of_unit_parts(torch.from_numpy(parts)), [[0.5, 0.5], [1.0, 0.0]])
    # The mean of the parts' cosines is another number: here (1 + 0) / 2 instead of 1 / sqrt 2.
    assert paired_cosines(mean_of_unit_parts(parts[:1]), np.array([[1.0, 0.0]]))[0] == pytest.approx(2**-0.5)


def test_what_has_no_cosine_is_refused():
    good, zero, broken = np.ones((3, 2)), np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]), np.ones((3, 2))
    broken[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"b must have no zero row .* row 1 is zero"):
        paired_cosines(good, zero)
    with pytest.raises(ValueError, match=r"a must be finite; .* row 2"):
        paired_cosines(broken, good)
    with pytest.raises(ValueError, match=r"one shape, got \(3, 2\) and \(2, 2\)"):
        paired_cosines(good, good[:2])
    with pytest.raises(ValueError, match="at least one clip, got none"):
        paired_cosines(good[:0], good[:0])
    with pytest.raises(ValueError, match=r"count must be at least 2 .* got 1"):
        AlignmentScore.from_embeddings(good[:1], good[:1])
    with pytest.raises(ValueError, match=r"same two clips or more, got \(3,\) and \(2,\)"):
        AlignmentScore(per_clip=np.ones(3), shuffled=np.ones(2), chance=0.0, seed=0)
    with pytest.raises(ValueError, match=r"parts must have shape .* got \(3, 2\)"):
        mean_of_unit_parts(good)
    with pytest.raises(ValueError, match="parts must have no zero row"):
        mean_of_unit_parts(zero[None])
