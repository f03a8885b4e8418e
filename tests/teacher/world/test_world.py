"""The procedural world: determinism, balance, onsets where they are said to be, and rendering that can be continued."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import correlate

from scripts.make_world import MakeWorld, main
from teacher.lists.manifest import read_manifest
from teacher.media import FrameRequest, probe, read_audio, read_frames
from teacher.world.render import (
    LABELS,
    WorldConfig,
    clip_label,
    clip_split,
    make_clip,
    make_frames,
    make_sound,
    render_world,
)
from teacher.world.sound import AMBIENCE_DB

SMALL = WorldConfig(num_clips=7)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven clips, one of each kind."""
    out = tmp_path_factory.mktemp("world")
    render_world(out, SMALL, workers=1)
    return out


@pytest.mark.parametrize("duration_s", [0.64, 1.0, 2.0, 8.0])
def test_events_keep_their_distance_and_the_edges_quiet(duration_s: float) -> None:
    config = WorldConfig(duration_s=duration_s)
    for index in range(300):
        events = make_clip(config, index).events
        times = np.array([e.time_s for e in events])
        assert 1 <= len(events) <= max(3, 2.5 * duration_s + 1)
        assert times[0] >= 0.08 - 1e-9
        assert times[-1] <= duration_s - 0.1 + 1e-9
        assert len(times) == 1 or np.diff(times).min() >= 0.15 - 1e-9
        assert all(0 < e.strength <= 1 for e in events)


def test_labels_are_balanced_and_every_label_is_in_training_and_test() -> None:
    counts = Counter(clip_label(i) for i in range(600))
    assert set(counts.values()) == {20}
    assert len(counts) == len(LABELS) == 30
    by_label = Counter((clip_label(i), clip_split(i)) for i in range(600))
    assert {by_label[label, "train"] for label in LABELS} == {15}
    assert {by_label[label, "val"] for label in LABELS} == {1}
    assert {by_label[label, "test"] for label in LABELS} == {4}
    assert {clip_split(i) for i in range(16)} == {"train", "val", "test"}


def test_a_clip_is_a_function_of_seed_and_index_alone() -> None:
    small, large = WorldConfig(num_clips=3), WorldConfig(num_clips=900)
    clip = make_clip(small, 2)
    assert clip.events == make_clip(large, 2).events
    np.testing.assert_array_equal(make_sound(small, 2, clip), make_sound(large, 2, make_clip(large, 2)))
    np.testing.assert_array_equal(make_frames(small, 2, clip), make_frames(large, 2, make_clip(large, 2)))
    other = WorldConfig(seed=1)
    assert make_clip(other, 2).events != clip.events


def test_size_and_rate_do_not_change_what_happens() -> None:
    a, b = WorldConfig(), WorldConfig(height=64, width=128, fps=10.0, sample_rate=44_100)
    for index in range(7):
        clip = make_clip(b, index)
        assert make_clip(a, index).events == clip.events
        frames = make_frames(b, index, clip)
        assert frames.shape == (20, 64, 128, 3)
        # Picture k shows the time k / fps, whatever the rate: every fifth of 50 a second is every one of 10.
        dense = WorldConfig(height=64, width=128, fps=50.0)
        np.testing.assert_array_equal(make_frames(dense, index, clip)[::5], frames)


def onset_samples(config: WorldConfig, index: int) -> list[int]:
    return [round(e.time_s * config.sample_rate) for e in make_clip(config, index).events]


@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
def test_sound_starts_at_the_event_times(sample_rate: int) -> None:
    """The energy of the 3 ms after an event against that of 3 ms which end 1 ms before (60 clips, all labels twice).

    Nearly all events jump out, background, tail of the last hit and all; the first of a clip always does.
    """
    config = WorldConfig(sample_rate=sample_rate)
    step = sample_rate // 1000
    jumps = []
    for index in range(60):
        clip = make_clip(config, index)
        wave = make_sound(config, index, clip)
        for number, start in enumerate(onset_samples(config, index)):
            after = np.square(wave[start : start + 3 * step]).mean()
            before = np.square(wave[start - 4 * step : start - step]).mean()
            jumps.append(after / before)
            assert number or jumps[-1] > 1.5, (index, clip.kind, clip.material)
    assert np.mean(np.array(jumps) > 1.5) > 0.95
    assert np.median(jumps) > 10


def test_peaks_and_background_are_in_their_ranges() -> None:
    config = WorldConfig()
    peaks, floors = [], []
    for index in range(90):
        clip = make_clip(config, index)
        wave = make_sound(config, index, clip)
        peaks.append(20 * np.log10(np.abs(wave).max()))
        if clip.kind in ("drip", "tick", "bounce"):
            first = onset_samples(config, index)[0]
            floors.append(20 * np.log10(np.sqrt(np.square(wave[: first - 16]).mean())) - peaks[-1])
    assert -6.01 <= min(peaks) < max(peaks) <= -0.99
    # RMS within AMBIENCE_DB of the loudest hit over the clip; before the first hit, a few tenths of a second, the slow
    # fluctuation moves it by a few dB more.
    low, high = AMBIENCE_DB
    assert low - 8 < min(floors) < low + 6
    assert low < np.mean(floors) < high
    assert high - 8 < max(floors) < high + 6


def test_sound_differs_where_picture_and_words_agree() -> None:
    """Two draws of the same clip: same onsets, far apart as waves and in pitch."""
    config = WorldConfig()
    clip = make_clip(config, 7)
    a, b = make_sound(config, 7, clip), make_sound(config, 8, clip)
    correlation = np.abs(correlate(a, b)).max() / np.sqrt(np.square(a).sum() * np.square(b).sum())
    assert correlation < 0.7


def test_harder_hits_are_louder() -> None:
    """Level against strength over the single hits of many clips: a clear rank correlation."""
    strengths, levels = [], []
    config = WorldConfig()
    for index in range(200):
        clip = make_clip(config, index)
        if clip.kind not in ("strike", "bounce", "beep", "drip") or len(clip.events) < 2:
            continue
        wave = make_sound(config, index, clip)
        peaks = [np.abs(wave[s : s + 800]).max() for s in onset_samples(config, index)]
        strengths += [e.strength - np.mean([x.strength for x in clip.events]) for e in clip.events]
        levels += list(np.log(peaks) - np.mean(np.log(peaks)))
    assert np.corrcoef(strengths, levels)[0, 1] > 0.6


def test_the_picture_shows_the_time_of_events() -> None:
    """The flash makes the first picture that can show an event brighten more than the two before it."""
    config = WorldConfig()
    shown = total = 0
    for index in range(60):
        clip = make_clip(config, index)
        rise = np.diff(make_frames(config, index, clip).mean(axis=(1, 2, 3)))
        for event in clip.events:
            frame = int(np.ceil(event.time_s * config.fps))
            total += 1
            shown += rise[frame - 1] > max(0.1, 1.2 * rise[max(0, frame - 3) : frame - 1].max())
    assert shown > 0.97 * total


def test_decoded_files_agree_with_what_was_synthesised(world: Path) -> None:
    for item in read_manifest(world / "manifest.jsonl"):
        index = int(item.id)
        info = probe(item.path)
        assert (info.duration_s, info.width, info.height, info.fps) == (2.0, 96, 96, 25.0)
        clip = make_clip(SMALL, index)
        wave = make_sound(SMALL, index, clip)
        back = read_audio(item.path, sample_rate=16_000, duration_s=2.0)
        assert back.shape == wave.shape
        assert abs(int(np.argmax(correlate(back, wave))) - (len(wave) - 1)) <= 1
        (frames,) = read_frames(item.path, [FrameRequest(fps=25, height=96, width=96)], duration_s=2.0)
        drawn = make_frames(SMALL, index, clip).transpose(0, 3, 1, 2)
        # Mean error after coding is a few levels; a neighbouring frame is further away where things move.
        assert np.abs(frames.astype(int) - drawn).mean() < 6
        assert item.events_s == tuple(round(e.time_s, 5) for e in clip.events)


def test_sidecars_and_manifest_say_the_same(world: Path) -> None:
    items = read_manifest(world)
    assert [i.id for i in items] == [f"{k:05d}" for k in range(7)]
    for item in items:
        facts = json.loads(item.path.with_suffix(".json").read_text())
        assert item.label == f"{facts['kind']} {facts['material']}" == facts["label"]
        assert item.caption == facts["caption"]
        assert "{" not in item.caption
        assert item.events_s == tuple(e["time_s"] for e in facts["events"])
        assert item.split == clip_split(int(item.id))


def test_rendering_continues_and_refuses_other_settings(tmp_path: Path) -> None:
    config = WorldConfig(num_clips=2, duration_s=0.64)
    render_world(tmp_path, config, workers=1)
    clips = sorted((tmp_path / "clips").glob("*.mp4"))
    stamps = [p.stat().st_mtime_ns for p in clips]
    clips[1].with_suffix(".json").unlink()  # As if interrupted between the video and its facts.
    counts: list[int] = []
    render_world(tmp_path, WorldConfig(num_clips=3, duration_s=0.64), workers=1, progress=counts.append)
    assert counts == [1, 2]
    assert clips[0].stat().st_mtime_ns == stamps[0]
    assert clips[1].stat().st_mtime_ns != stamps[1]
    assert len(read_manifest(tmp_path / "manifest.jsonl")) == 3
    with pytest.raises(ValueError, match="holds a world with other settings \\(seed 0 there, 1 asked\\)"):
        render_world(tmp_path, WorldConfig(num_clips=3, duration_s=0.64, seed=1), workers=1)
    assert [p.name for p in (tmp_path / "clips").iterdir() if p.name.startswith(".")] == []


def test_processes_render_the_same_files_as_one(tmp_path: Path) -> None:
    config = WorldConfig(num_clips=9, duration_s=0.64)
    render_world(tmp_path / "one", config, workers=1)
    main(MakeWorld(out=tmp_path / "two", world=config, workers=2))
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


@pytest.mark.slow
def test_ctrl_c_leaves_whole_clips_that_are_continued(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.make_world", "--out", str(tmp_path), "--num-clips", "400"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, cwd=Path(__file__).parents[3])
    clips = tmp_path / "clips"
    deadline = time.monotonic() + 60
    while not (clips.is_dir() and list(clips.glob("*.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # A terminal sends it to the workers as well.
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted; finished results are saved" in printed
    assert b"Traceback" not in printed
    videos = sorted(clips.glob("*.mp4"))
    assert 1 <= len(videos) < 400
    assert [p.stem for p in videos] == sorted(p.stem for p in clips.glob("*.json"))
    assert [p.name for p in clips.iterdir() if p.name.startswith(".")] == []
    assert all(probe(p).duration_s == 2.0 for p in videos)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_clips", 0), ("seed", -1), ("duration_s", 0.5), ("sample_rate", 22_050), ("height", 97), ("fps", 0.0)],
)
def test_settings_are_checked(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must .*{value}"):
        WorldConfig(**{field: value})  # type: ignore[arg-type]
