"""The line on licences that goes into every sound and video is read back by the libraries players use."""

import av
import numpy as np
import pytest
import soundfile

from teacher.media import probe, remux, write_audio, write_video

LINE = "MMAudio weights: CC BY-NC 4.0 (non-commercial); Münze, 音"
WAVE = (0.5 * np.sin(np.arange(16_000) / 20)).astype(np.float32)
FRAMES = np.full((25, 16, 16, 3), 100, dtype=np.uint8)


def tags(path):
    with av.open(str(path)) as container:
        return {key.lower(): value for key, value in container.metadata.items()}


@pytest.mark.parametrize("suffix", [".flac", ".wav"])
def test_sounds_carry_the_comment_and_the_same_samples(tmp_path, suffix):
    with_line, without = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write_audio(with_line, WAVE, 16_000, comment=LINE)
    write_audio(without, WAVE, 16_000)
    assert soundfile.SoundFile(with_line).comment == LINE
    assert tags(with_line)["comment"] == LINE
    assert "comment" not in tags(without)
    np.testing.assert_array_equal(soundfile.read(with_line)[0], soundfile.read(without)[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_videos_carry_the_comment(tmp_path, suffix):
    film, again, window = (tmp_path / f"{name}{suffix}" for name in ("film", "again", "window"))
    write_video(film, FRAMES, 25, WAVE, 16_000, comment=LINE)
    assert tags(film)["comment"] == LINE
    remux(film, WAVE, 16_000, again, comment="another line")
    assert tags(again)["comment"] == "another line"
    remux(film, WAVE, 16_000, window, duration_s=0.5, comment=LINE)
    assert tags(window)["comment"] == LINE
    assert probe(window).has_audio
    remux(film, WAVE, 16_000, again)
    assert "comment" not in tags(again)
