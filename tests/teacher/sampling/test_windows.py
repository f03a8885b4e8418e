"""Long sounds: windows cover the whole, share their noise, and are joined at constant energy."""

from itertools import pairwise

import pytest
import torch

from teacher.network.sequence import SEQUENCE_16K, SEQUENCE_44K
from teacher.sampling.generator import clip_seed, noise
from teacher.sampling.windows import OVERLAP_S, Joiner, overlap_s, window_noise, window_starts

RATE = 16_000


@pytest.mark.parametrize("sequence", [SEQUENCE_16K, SEQUENCE_44K])
@pytest.mark.parametrize("total_s", [0.7, 2.0, 2.01, 2.1, 5.0, 61.3])
def test_windows_cover_the_whole_and_share_half_a_second(total_s, sequence):
    starts = window_starts(total_s, 2.0, sequence)
    seconds = [start / sequence.latent_rate for start in starts]
    assert starts[0] == 0
    end = seconds[-1] + min(total_s, 2.0)
    assert total_s - 1e-6 <= end < total_s + 1 / sequence.latent_rate
    assert all(0 < b - a <= 2.0 - OVERLAP_S + 1e-9 for a, b in pairwise(seconds))


def test_too_short_a_sound_is_refused():
    with pytest.raises(ValueError, match=r"shortest sound is 0\.64 s"):
        window_starts(0.5, 2.0, SEQUENCE_16K)
    assert (overlap_s(8.0), overlap_s(0.8)) == (0.5, 0.2)


def test_noise_is_a_function_of_seed_and_time():
    """Frame n is the same in every window, and the first window has the noise of a sound of one window."""
    starts, frames = (0, 47, 62, 94, 130), 62
    made = window_noise(7, starts, frames, 3)
    assert torch.equal(made[0], noise([clip_seed(7, "window 0")], frames, 3)[0])
    assert torch.equal(made[2], noise([clip_seed(7, "window 1")], frames, 3)[0])
    at = {}
    for start, window in zip(starts, made, strict=True):
        for k, frame in enumerate(window, start=start):
            assert torch.equal(at.setdefault(k, frame), frame)
    assert sorted(at) == list(range(192))
    everything = torch.stack([at[k] for k in range(192)])
    assert len(everything.unique()) == everything.numel()  # nothing is used twice
    assert not torch.equal(window_noise(8, starts, frames, 3), made)


def join(windows, starts, *, fade, total):
    joiner = Joiner(fade=fade, total=total)
    nexts = (*starts[1:], None)
    pieces = [joiner.add(w, s, then=then) for w, s, then in zip(windows, starts, nexts, strict=True)]
    return pieces, torch.cat(pieces)


@pytest.mark.parametrize(("length", "starts"), [(100, (0, 80, 160, 200)), (100, (0, 60, 70, 150)), (300, (0,))])
def test_windows_of_one_sound_give_that_sound(length, starts):
    """Equal overlaps are joined without a trace, whatever their lengths; the sound ends where it should."""
    sound = torch.randn(320, generator=torch.Generator().manual_seed(0))
    total = starts[-1] + length - 7
    pieces, made = join([sound[s : s + length] for s in starts], starts, fade=20, total=total)
    torch.testing.assert_close(made, sound[:total], rtol=0, atol=1e-5)
    assert len(pieces) == len(starts)


def test_everything_before_the_next_window_is_handed_out():
    sound = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    starts = tuple(range(0, 1901, 80))
    pieces, _ = join([sound[s : s + 100] for s in starts], starts, fade=20, total=2000)
    assert [len(piece) for piece in pieces[:-1]] == [80] * (len(starts) - 1)


@pytest.mark.parametrize(
    ("common", "sign"), [(0.0, 1), (0.5, 1), (1.0, 1), (0.6, -1)], ids=["unrelated", "half alike", "equal", "opposed"]
)
def test_seams_have_the_energy_of_what_lies_between_them(common, sign):
    """Windows of noise of unit power, alike in a share of it: power at the seams is 1 as everywhere (a plain fade of
    unrelated sounds would have 2/3 on average)."""
    generator = torch.Generator().manual_seed(1)
    length, fade, count = 4000, 1000, 60
    starts = tuple(k * (length - fade) for k in range(count))
    total = starts[-1] + length
    shared = torch.randn(total, generator=generator)
    windows = [
        sign**k * common**0.5 * shared[s : s + length] + (1 - common) ** 0.5 * torch.randn(length, generator=generator)
        for k, s in enumerate(starts)
    ]
    _, made = join(windows, starts, fade=fade, total=total)
    seams = torch.stack([made[s : s + fade] for s in starts[1:]])
    inside = torch.stack([made[s + fade : s + length - fade] for s in starts[1:-1]])
    # Standard error of either mean power: sqrt(2 / 59,000) = 0.006.
    assert float(seams.square().mean()) == pytest.approx(float(inside.square().mean()), abs=0.03)
    middle = seams[:, fade // 2 - 50 : fade // 2 + 50].square().mean()
    assert float(middle) == pytest.approx(1.0, abs=0.08)


def test_gaps_are_refused():
    joiner = Joiner(fade=10, total=300)
    joiner.add(torch.zeros(100), 0, then=100)
    with pytest.raises(ValueError, match="gap of 1"):
        joiner.add(torch.zeros(100), 101, then=None)
