"""DeSync: classes, windows, chance and what is refused."""

import numpy as np
import pytest
import torch

from eval.metrics.desync import CHANCE_S, DeSync, first_and_last


def sure_of(classes):
    """Logits whose largest entry is at the given class of each clip."""
    return 5.0 * torch.eye(21)[torch.as_tensor(classes)] - 1.0


def test_every_class_stands_for_its_seconds():
    score = DeSync.from_logits(sure_of(range(21)), sure_of(range(21)))
    np.testing.assert_allclose(score.offsets_s[:, 0], [(k - 10) / 5 for k in range(21)], atol=1e-12)
    np.testing.assert_allclose(score.per_clip_s, [abs(0.2 * k - 2) for k in range(21)], atol=1e-12)
    assert score.per_clip_s[10] == 0.0


def test_chance_is_22_in_21_seconds():
    assert 2 * sum(0.2 * k for k in range(1, 11)) / 21 == pytest.approx(CHANCE_S)
    # Each class once: the mean over clips of a model that answers evenly.
    assert DeSync.from_logits(sure_of(range(21)), sure_of(range(20, -1, -1))).per_clip_s.mean() == pytest.approx(
        CHANCE_S
    )
    drawn = torch.rand(20_000, 21, generator=torch.Generator().manual_seed(0))
    # |offset| has standard deviation 0.61 s: 0.004 for the mean of 20000.
    assert DeSync.from_logits(drawn, drawn).per_clip_s.mean() == pytest.approx(CHANCE_S, abs=0.015)


def test_a_model_that_always_answers_in_time_looks_perfect():
    assert DeSync.from_logits(sure_of([10] * 4), sure_of([10] * 4)).per_clip_s.mean() == 0.0


def test_windows_are_averaged_as_lengths_and_offsets_keep_their_sign():
    score = DeSync.from_logits(sure_of([5, 10]), sure_of([15, 20]))  # -1 and +1 s do not cancel
    assert score.per_clip_s.tolist() == [1.0, 1.0]
    np.testing.assert_allclose(score.offsets_s, [[-1.0, 1.0], [0.0, 2.0]], atol=1e-12)
    uneven = DeSync.from_logits(sure_of([0, 10, 10]), sure_of([0, 10, 11]))
    assert uneven.per_clip_s.mean() == pytest.approx((2.0 + 0.0 + 0.1) / 3)


@pytest.mark.parametrize(
    ("segments", "last"), [(14, 0), (15, 1), (24, 10), (28, 14), (40, 26)]
)  # 24 segments are 8 s; from 28 on the windows share none
def test_windows_are_the_first_and_the_last_fourteen(segments, last):
    places = list(range(segments))
    first, final = first_and_last(segments)
    assert places[first] == list(range(14))
    assert places[final] == list(range(last, segments))
    assert len(places[final]) == 14


@pytest.mark.parametrize(
    ("segments", "length"), [(13, r"13 segments \(4.48 s\)"), (1, r"1 segments \(0.64"), (0, "none")]
)
def test_a_clip_below_4_8_seconds_is_refused(segments, length):
    with pytest.raises(ValueError, match=rf"at least 14 segments \(4.80 s\) for DeSync, got {length}"):
        first_and_last(segments)


def test_a_clip_does_not_depend_on_the_others():
    first, last = torch.randn(2, 30, 21, generator=torch.Generator().manual_seed(1))
    whole = DeSync.from_logits(first, last).per_clip_s
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    assert (DeSync.from_logits(first[order], last[order]).per_clip_s == whole[order.numpy()]).all()
    assert (DeSync.from_logits(first[7:8], last[7:8]).per_clip_s == whole[7:8]).all()


def test_broken_logits_and_unequal_clips_are_refused():
    good, broken = torch.zeros(4, 21), torch.zeros(4, 21)
    broken[2, 3] = torch.nan
    with pytest.raises(ValueError, match="last must be finite, got NaN or infinite logits in row 2"):
        DeSync.from_logits(good, broken)
    with pytest.raises(ValueError, match=r"first must have shape \(clips, 21\) .* got \(4, 20\)"):
        DeSync.from_logits(good[:, :20], good)
    with pytest.raises(ValueError, match=r"at least one clip, got \(0, 21\)"):
        DeSync.from_logits(good[:0], good[:0])
    with pytest.raises(ValueError, match="same clips, got 4 and 3"):
        DeSync.from_logits(good, good[:3])
    with pytest.raises(ValueError, match=r"offsets_s must have shape \(clips, 2\) .* got \(3,\)"):
        DeSync(offsets_s=np.zeros(3))
