"""The weight-free encoders: layouts, scales, determinism, and that they carry what the network needs."""

import hashlib

import numpy as np
import pytest
import torch

from teacher.encoders.embedded import EmbeddedImage, EmbeddedMotion, EmbeddedText, hashed_signs, projection
from teacher.encoders.registry import load_encoders
from teacher.network.sequence import image_frames, sync_frames, sync_video_frames

IMAGE, MOTION, TEXT = EmbeddedImage(), EmbeddedMotion(), EmbeddedText()


def noise_frames(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def disc(size: int, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> np.ndarray:
    """One frame with an anti-aliased disc on grey; positions in units of the picture."""
    axis = (np.arange(size) + 0.5) / size
    distance = np.hypot(axis[None] - x, axis[:, None] - y)
    inside = np.clip((radius - distance) * size + 0.5, 0, 1)
    frame = 90 + (np.array(colour)[:, None, None] - 90) * inside
    return (frame + 0.5).astype(np.uint8)


def fall(impact_s: float, *, x: float) -> np.ndarray:
    """50 frames at 25 fps: a ball falls, hits the ground at `impact_s` and rises again."""
    times = np.arange(50) / 25
    apart = np.abs(times - impact_s)
    heights = np.where(times < impact_s, 1.6 * apart + 2.5 * apart**2, 1.2 * apart - 2.5 * apart**2)
    return np.stack([disc(48, x, 0.85 - h, 0.1, (220, 60, 60)) for h in np.clip(heights, 0, 1.2)])


@pytest.mark.parametrize("duration_s", [0.64, 2.0, 8.0])
def test_lengths_are_those_of_clip_and_synchformer(duration_s):
    image = IMAGE(noise_frames(image_frames(duration_s), 32))
    motion = MOTION(noise_frames(sync_video_frames(duration_s), 48))
    assert image.shape == (image_frames(duration_s), 1024)
    assert motion.shape == (sync_frames(duration_s), 768)
    assert image.dtype == motion.dtype == torch.float32


def test_slots_are_in_order_of_time():
    """Slot k describes frame number (k + 1/2) T / 32 - 1/2: a change of one frame touches the slots around it alone."""
    frames = noise_frames(40, 48)
    changed = frames.copy()
    changed[20] = 255 - changed[20]
    touched = (MOTION(changed) - MOTION(frames)).abs().amax(1) > 0.5
    instant = (torch.arange(32) + 0.5) * 40 / 32 - 0.5
    # Half a frame either side, interpolated between two frames, second differences one further: 0.5 + 1 + 1 at most.
    assert bool((instant[touched] - 20).abs().max() < 2.5)
    assert bool(touched[(instant - 20).abs() < 1.5].all())


def test_same_numbers_on_every_machine():
    # SHAKE-256 of "a" begins with byte 0x86 = 1000 0110 (FIPS 202), most significant bit first.
    assert hashlib.shake_256(b"a").digest(1) == b"\x86"
    assert hashed_signs("a", 8).tolist() == [1, -1, -1, -1, -1, 1, 1, -1]
    torch.testing.assert_close(projection("p", 6, 9) @ projection("p", 6, 9).T, torch.eye(6))
    frames = noise_frames(16, 48)
    assert torch.equal(MOTION(frames), MOTION(torch.from_numpy(frames)))


def test_image_features_have_unit_length_and_tell_colour_and_shape():
    red = np.stack([disc(32, x, 0.5, 0.2, (220, 50, 50)) for x in (0.45, 0.55)])
    blue = np.stack([disc(32, x, 0.5, 0.2, (50, 60, 220)) for x in (0.45, 0.55)])
    bar = np.full((2, 3, 32, 32), 90, np.uint8)
    bar[:, :, 4:28, 14:18] = np.array([220, 50, 50])[None, :, None, None]
    features = IMAGE(np.concatenate((red, blue, bar)))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    similar = features @ features.T
    same = min(similar[i, i + 1].item() for i in (0, 2))
    assert same > similar[:2, 2:].max() + 0.05  # a moved disc is nearer than another colour or another shape
    assert torch.isfinite(IMAGE(np.zeros((2, 3, 32, 32), np.uint8))).all()


def test_still_video_has_no_motion():
    frame = noise_frames(1, 48)
    still = MOTION(np.repeat(frame, 32, axis=0))
    # Every slot of a still picture is alike, and small beside a moving one.
    torch.testing.assert_close(still, still[:1].expand_as(still))
    assert still.std() < 0.2 * MOTION(fall(1.0, x=0.5)).std()


def test_steady_motion_shows_its_direction():
    right = np.stack([disc(48, 0.2 + 0.02 * k, 0.5, 0.1, (220, 60, 60)) for k in range(32)])
    slots, back = MOTION(right)[8:16], MOTION(right[::-1].copy())[8:16]
    # First differences flip their sign; from positions alone the ratio would be 0.95, with them it is 1.19.
    assert (slots - back).norm() > 1.08 * slots.norm()


def test_impact_time_is_linear_in_neighbouring_slots():
    rng = np.random.default_rng(1)
    rows, targets = [], []
    for _ in range(160):
        impact_s = rng.uniform(0.88, 0.96)  # frames 22 and 23
        slots = MOTION(fall(impact_s, x=rng.uniform(0.3, 0.7)))
        nearest = int(0.92 * 25 * len(slots) / 50)
        rows.append(slots[nearest - 1 : nearest + 3].flatten())
        targets.append(impact_s)
    features, target = torch.stack(rows).double(), torch.tensor(targets, dtype=torch.float64)
    centre, mean = features[:120].mean(0), target[:120].mean()
    gram = (features[:120] - centre) @ (features[:120] - centre).T
    weights = torch.linalg.solve(gram + 30.0 * torch.eye(120, dtype=torch.float64), target[:120] - mean)
    predicted = (features[120:] - centre) @ (features[:120] - centre).T @ weights + mean
    error_ms = 1e3 * (predicted - target[120:]).abs().median()
    assert error_ms < 6.0  # a frame lasts 40 ms; guessing the middle gives 20 ms


def test_motion_scale_is_of_order_one():
    moving = torch.stack([MOTION(fall(t, x=0.5)) for t in (0.6, 1.0, 1.4)])
    assert 0.3 < moving.std() < 3.0
    assert moving.abs().max() < 40


def test_text_positions_have_unit_length_and_words_show_in_the_mean():
    features = TEXT(["A Metal ball bounces!", "a metal ball bounces", "a wooden ball bounces", ""])
    assert features.shape == (4, 77, 1024)
    torch.testing.assert_close(features.norm(dim=2), torch.ones(4, 77))
    torch.testing.assert_close(features[0], features[1])  # case and punctuation do not matter
    mean = torch.nn.functional.normalize(features.mean(1), dim=1)
    assert mean[0] @ mean[2] < 0.98
    assert mean[0] @ mean[3] < mean[0] @ mean[2]
    torch.testing.assert_close(features[3], features[3, :1].expand(77, -1))  # nothing but padding
    order = TEXT(["dog bites man", "man bites dog"])
    assert (order[0] - order[1]).abs().max() > 1e-3


def test_text_longer_than_77_words_and_wrong_types():
    long = " ".join(f"word{i}" for i in range(100))
    torch.testing.assert_close(TEXT([long]), TEXT([" ".join(long.split()[:77])]))
    with pytest.raises(ValueError, match="list of strings, got one string"):
        TEXT("a dog")


def test_wrong_frames_are_refused():
    with pytest.raises(ValueError, match=r"\(T, 3, 32, 32\), got torch.uint8 \(2, 3, 48, 48\)"):
        IMAGE(noise_frames(2, 48))
    with pytest.raises(ValueError, match="at least 16"):
        MOTION(noise_frames(15, 48))
    with pytest.raises(ValueError, match="uint8"):
        IMAGE(noise_frames(2, 32).astype(np.float32))


def test_unknown_encoders_list_the_known_ones():
    with pytest.raises(ValueError, match="encoders must be one of embedded, mmaudio, got 'clip'"):
        load_encoders("clip")
