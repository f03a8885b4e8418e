"""Media files: what is read from healthy and from broken ones, presentation times, and what is written."""

import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from scipy.signal import correlate

from teacher.media import FrameRequest, MediaError, probe, read_audio, read_frames, remux, write_audio, write_video
from teacher.media import write as media_write

REFUSED = "is not a media file|is not supported"
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nclip.mp4\n#EXT-X-ENDLIST\n"
ROOT = Path(__file__).resolve().parents[3]
SHARED = Path(__file__).parents[4] / "shared" / "data" / "av"


def grey_ramp(count: int, height: int = 64, width: int = 96, step: int = 4) -> np.ndarray:
    """Frame k is grey with level 16 + step k, so a decoded pixel tells which frame it is."""
    levels = (16 + step * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def index_of(frames: np.ndarray, step: int = 4) -> list[int]:
    return np.rint((frames[:, :, 20:44, 20:44].mean(axis=(1, 2, 3)) - 16) / step).astype(int).tolist()


def clicks(duration_s: float, sample_rate: int, times_s: tuple[float, ...] = (0.31, 0.9, 1.5)) -> np.ndarray:
    wave = np.zeros(round(duration_s * sample_rate), np.float32)
    decay = np.exp(-np.arange(round(0.05 * sample_rate)) / (0.01 * sample_rate))
    burst = (0.5 * decay * np.sin(2 * np.pi * 700 * np.arange(decay.size) / sample_rate + 1)).astype(np.float32)
    for at in times_s:
        start = round(at * sample_rate)
        wave[start : start + burst.size] += burst[: wave.size - start]
    return wave


def lag(a: np.ndarray, b: np.ndarray) -> int:
    """Samples by which a is late against b."""
    return int(np.argmax(correlate(a, b))) - (len(b) - 1)


def encode(
    path: Path,
    frames: np.ndarray,
    times_s: list[float],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    degrees: int = 0,
    options: dict[str, str] | None = None,
    stream_options: dict[str, str] | None = None,
) -> Path:
    """A silent video with the given presentation times."""
    with av.open(str(path), "w", options=options or {}) as output:
        stream = output.add_stream(codec, rate=25, options=stream_options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        if pix_fmt == "gray":
            stream.codec_context.color_range = 2  # Full range: the conversion to grey keeps 0..255.
        if degrees:
            stream.set_display_rotation(degrees)
        for picture, at in zip(frames, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * at), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(path, grey_ramp(50), 25.0, clicks(2.0, 16_000), 16_000)
    return path


def test_probe_tells_size_rate_and_duration(clip: Path) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.fps, info.duration_s) == (96, 64, 25.0, 2.0)
    assert info.has_video
    assert info.has_audio


def test_sample_k_is_the_first_frame_at_or_after_k_over_fps(clip: Path) -> None:
    eight, full = read_frames(
        clip, [FrameRequest(fps=8, height=64, width=96), FrameRequest(fps=25, height=64, width=96)], duration_s=2.0
    )
    # Frames stand at n / 25; 8 fps asks for k / 8, so n = ceil(25 k / 8).
    assert index_of(eight) == [-(-25 * k // 8) for k in range(16)]
    assert index_of(full) == list(range(50))


@pytest.mark.parametrize("start_s", [0.1, 0.52, 1.2])
def test_a_window_gives_the_frames_of_that_time(clip: Path, start_s: float) -> None:
    (frames,) = read_frames(clip, [FrameRequest(fps=25, height=64, width=96)], start_s=start_s, duration_s=0.6)
    first = int(np.ceil(start_s * 25 - 1e-6))
    assert index_of(frames) == list(range(first, first + 15))


def test_variable_frame_rate_goes_by_presentation_time(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.13, 0.5, 0.9, 0.95, 1.3]
    path = encode(tmp_path / "vfr.mp4", grey_ramp(7, step=20), times)
    (frames,) = read_frames(path, [FrameRequest(fps=10, height=64, width=96)], duration_s=1.3)
    expected = [next(i for i, t in enumerate(times) if t >= k / 10 - 1e-6) for k in range(13)]
    assert index_of(frames, step=20) == expected


def test_short_tails_are_filled_and_longer_ones_refused(clip: Path) -> None:
    request = FrameRequest(fps=25, height=64, width=96)
    # The last of 50 frames is at 1.96 s; two more (2.00, 2.04) are allowed, a third is not.
    (frames,) = read_frames(clip, [request], duration_s=2.08)
    assert index_of(frames)[-3:] == [49, 49, 49]
    with pytest.raises(MediaError, match=r"clip\.mp4: has only 2\.00 s of video, 2\.12 s are needed"):
        read_frames(clip, [request], duration_s=2.12)


def test_rotation_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((25, 64, 96, 3), np.uint8)
    picture[:, :32] = 220  # Upper half bright; turned a quarter counter-clockwise it is the left half.
    path = encode(tmp_path / "turned.mp4", picture, [k / 25 for k in range(25)], degrees=90)
    assert (probe(path).width, probe(path).height) == (64, 96)
    (frames,) = read_frames(path, [FrameRequest(fps=5, height=96, width=64)], duration_s=1.0)
    assert frames[0, :, :, :28].mean() > 200 > 20 > frames[0, :, :, 36:].mean()
    out = tmp_path / "out.mp4"
    remux(path, clicks(1.0, 16_000), 16_000, out)
    assert (probe(out).width, probe(out).height) == (64, 96)


def test_crop_keeps_the_centre_and_stretch_keeps_everything(tmp_path: Path) -> None:
    picture = np.zeros((5, 128, 64, 3), np.uint8)
    picture[:, 32:96] = 220  # The centre square of a portrait picture.
    path = encode(tmp_path / "portrait.mp4", picture, [k / 5 for k in range(5)])
    crop, stretch = read_frames(
        path,
        [FrameRequest(fps=5, height=32, width=32, fit="crop"), FrameRequest(fps=5, height=32, width=32)],
        duration_s=1.0,
    )
    assert crop[:, :, 2:-2].min() > 200
    assert stretch[:, :, :6].max() < 30
    assert stretch[:, :, 12:20].min() > 200


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx264", "yuv444p", ".mp4"),
        ("libx264", "gray", ".mp4"),
        ("libx264", "yuv420p10le", ".mkv"),
        ("ffv1", "bgr0", ".mkv"),
        ("libvpx", "yuv420p", ".webm"),
        ("mjpeg", "yuvj420p", ".avi"),
    ],
)
def test_pixel_formats_and_containers(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    path = encode(tmp_path / f"clip{suffix}", grey_ramp(25), [k / 25 for k in range(25)], codec=codec, pix_fmt=pix_fmt)
    (frames,) = read_frames(path, [FrameRequest(fps=25, height=64, width=96)], duration_s=1.0)
    assert np.abs(np.array(index_of(frames)) - np.arange(25)).max() <= 1  # Lossy levels may be off by half a step.
    with pytest.raises(MediaError, match="has no sound"):
        read_audio(path, sample_rate=16_000)


def test_odd_sizes(tmp_path: Path) -> None:
    path = encode(tmp_path / "odd.mkv", grey_ramp(5, 67, 101), [k / 5 for k in range(5)], pix_fmt="yuv444p")
    (frames,) = read_frames(path, [FrameRequest(fps=5, height=64, width=96)], duration_s=1.0)
    assert index_of(frames) == list(range(5))
    write_video(tmp_path / "even.mp4", grey_ramp(5, 67, 101), 5.0, clicks(1.0, 16_000), 16_000)
    assert (probe(tmp_path / "even.mp4").width, probe(tmp_path / "even.mp4").height) == (102, 68)


def test_a_large_picture_is_reduced_frame_by_frame(tmp_path: Path) -> None:
    options = {"preset": "ultrafast"}
    path = encode(tmp_path / "4k.mp4", grey_ramp(3, 2160, 3840), [0.0, 0.2, 0.4], options=options)
    (frames,) = read_frames(path, [FrameRequest(fps=5, height=64, width=64, fit="crop")], duration_s=0.6)
    assert index_of(frames) == [0, 1, 2]


@pytest.mark.parametrize("sample_rate", [16_000, 44_100])
def test_sound_comes_back_without_delay(tmp_path: Path, sample_rate: int) -> None:
    path, wave = tmp_path / "clip.mp4", clicks(2.0, sample_rate)
    write_video(path, grey_ramp(50), 25.0, wave, sample_rate)
    back = read_audio(path, sample_rate=sample_rate, duration_s=2.0)
    assert back.shape == wave.shape
    assert back.dtype == np.float32
    assert lag(back, wave) == 0
    window = read_audio(path, sample_rate=sample_rate, start_s=1.3, duration_s=0.5)
    begin = round(1.3 * sample_rate)
    assert lag(window, wave[begin : begin + len(window)]) == 0


@pytest.mark.parametrize(
    ("name", "rate"), [("a.wav", 22_050), ("a.flac", 48_000), ("a.ogg", 44_100), ("a.mp3", 44_100)]
)
def test_sound_files_of_any_rate_are_resampled_in_place(tmp_path: Path, name: str, rate: int) -> None:
    wave = clicks(2.0, rate)
    soundfile.write(tmp_path / name, np.stack([1.5 * wave, 0.5 * wave], 1), rate)
    back = read_audio(tmp_path / name, sample_rate=16_000, duration_s=2.0)
    # The mean of 1.5 w and 0.5 w is w.
    assert abs(lag(back, clicks(2.0, 16_000))) <= 1
    assert np.abs(back).max() == pytest.approx(np.abs(wave).max(), rel=0.1)
    assert probe(tmp_path / name).duration_s == pytest.approx(2.0, abs=0.06)
    with pytest.raises(MediaError, match="has no picture"):
        read_frames(tmp_path / name, [FrameRequest(fps=8, height=8, width=8)], duration_s=1.0)


def test_surround_is_the_mean_of_its_channels_and_the_end_is_not_padded(tmp_path: Path) -> None:
    channels = np.zeros((8000, 6), np.float32)
    channels[:, 2] = 0.6
    soundfile.write(tmp_path / "surround.wav", channels, 8000, subtype="FLOAT")
    back = read_audio(tmp_path / "surround.wav", sample_rate=8000, duration_s=5.0)
    assert back.shape == (8000,)
    np.testing.assert_allclose(back, 0.1, atol=1e-6)


def test_sound_that_starts_late_stays_on_the_clock_of_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    wave = clicks(1.0, 16_000, (0.2,))
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        audio = output.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for number, picture in enumerate(grey_ramp(50)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(video.encode(frame))
        sound = av.AudioFrame.from_ndarray((wave[None] * 32767).astype(np.int16), format="s16", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = 16_000, 8_000, Fraction(1, 16_000)
        output.mux(audio.encode(sound))
        for stream in (video, audio):
            output.mux(stream.encode(None))
    back = read_audio(path, sample_rate=16_000, duration_s=2.0)
    assert np.flatnonzero(np.abs(back) > 0.05)[0] == pytest.approx((0.5 + 0.2) * 16_000, abs=8)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.mp4", b"", "is empty"),
        ("text.mp4", b"this is not a film\n" * 50, REFUSED),
        ("noise.mp4", np.random.default_rng(0).bytes(20_000), REFUSED),
        (
            "list.mp4",
            PLAYLIST,
            REFUSED,
        ),
        (
            "list.m3u8",
            PLAYLIST,
            REFUSED,
        ),
        ("script.mkv", b"ffconcat version 1.0\nfile clip.mp4\n", REFUSED),
    ],
)
def test_files_of_another_kind_are_refused_in_one_line(clip: Path, name: str, content: bytes, reason: str) -> None:
    path = clip.parent / name
    path.write_bytes(content)
    for use in (
        probe,
        lambda p: read_audio(p, sample_rate=16_000),
        lambda p: read_frames(p, [FrameRequest(fps=8, height=8, width=8)], duration_s=1.0),
        lambda p: remux(p, clicks(1.0, 16_000), 16_000, clip.parent / "out.mp4"),
    ):
        with pytest.raises(MediaError, match=reason) as caught:
            use(path)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (clip.parent / "out.mp4").exists()


@pytest.mark.parametrize("share", [0.03, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("faststart", [False, True])
def test_cut_off_files_never_give_too_little(clip: Path, share: float, faststart: bool) -> None:
    path = clip.parent / "whole.mp4"
    options = {"movflags": "+faststart"} if faststart else {}
    encode(path, grey_ramp(50), [k / 25 for k in range(50)], options=options)
    cut = clip.parent / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(MediaError, match=r"cut\.mp4: "):
        read_frames(cut, [FrameRequest(fps=25, height=64, width=96)], duration_s=2.0)


def test_files_that_are_not_regular_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="No such file"):
        probe(tmp_path / "missing.mp4")
    with pytest.raises(MediaError, match="not a regular file"):
        probe(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="not a regular file"):
        probe(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="cannot be read"):
        probe(Path("http://example.org/clip.mp4"))


def test_wrong_requests_name_the_field() -> None:
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        FrameRequest(fps=0, height=8, width=8)
    with pytest.raises(ValueError, match="height and width"):
        FrameRequest(fps=8, height=0, width=8)
    with pytest.raises(ValueError, match="duration_s must be positive"):
        read_audio(Path("x.mp4"), sample_rate=16_000, duration_s=-1.0)


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]


@pytest.mark.parametrize("sound_s", [0.5, 2.0, 5.0])
def test_remux_copies_the_picture_and_fits_the_sound(clip: Path, sound_s: float) -> None:
    out = clip.parent / "out.mp4"
    remux(clip, clicks(sound_s, 44_100, (0.25,)), 44_100, out)
    assert packets(out) == packets(clip)
    with av.open(str(out)) as container:
        assert [frame.time for frame in container.decode(container.streams.video[0])] == [k / 25 for k in range(50)]
    with av.open(str(out)) as container:
        audio = container.streams.audio[0]
        assert float(audio.duration * audio.time_base) == pytest.approx(2.0, abs=1024 / 44_100)
    back = read_audio(out, sample_rate=44_100, duration_s=2.0)
    assert back.shape == (88_200,)
    assert lag(back, clicks(2.0, 44_100, (0.25,))) == 0
    assert [p.name for p in sorted(clip.parent.iterdir())] == ["clip.mp4", "out.mp4"]


def test_remux_of_a_window_starts_the_picture_and_the_sound_anew(clip: Path) -> None:
    out = clip.parent / "out.mp4"
    remux(clip, clicks(1.0, 16_000, (0.3,)), 16_000, out, start_s=0.6, duration_s=1.0)
    assert probe(out).duration_s == pytest.approx(1.0, abs=1e-3)
    (frames,) = read_frames(out, [FrameRequest(fps=25, height=64, width=96)], duration_s=1.0)
    # Encoded twice, a level may be one step off; a picture shifted in time would be off everywhere.
    wrong = np.array(index_of(frames)) - np.arange(15, 40)
    assert np.abs(wrong).max() <= 1
    assert abs(wrong.mean()) < 0.5
    assert lag(read_audio(out, sample_rate=16_000, duration_s=1.0), clicks(1.0, 16_000, (0.3,))) == 0
    with pytest.raises(MediaError, match="has no video after 3 s"):
        remux(clip, clicks(1.0, 16_000), 16_000, out, start_s=3.0, duration_s=1.0)


def test_remux_of_a_codec_the_container_cannot_hold_encodes_anew(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.webm", grey_ramp(25), [k / 25 for k in range(25)], codec="libvpx")
    remux(source, clicks(1.0, 16_000, (0.3,)), 16_000, tmp_path / "b.mp4")
    (frames,) = read_frames(tmp_path / "b.mp4", [FrameRequest(fps=25, height=64, width=96)], duration_s=1.0)
    assert np.abs(np.array(index_of(frames)) - np.arange(25)).max() <= 1


COPIED = {
    "av1": ("libsvtav1", "yuv420p", (".mp4", ".mkv")),
    "vp9": ("libvpx-vp9", "yuv420p", (".mp4", ".mkv")),
    "vp8": ("libvpx", "yuv420p", (".mkv",)),
    "hevc": ("libx265", "yuv420p", (".mp4", ".mkv")),
    "mpeg4": ("mpeg4", "yuv420p", (".mp4", ".mkv")),
    "mjpeg": ("mjpeg", "yuvj420p", (".mov", ".mkv")),
    "ffv1": ("ffv1", "bgr0", (".mkv",)),
}
"""Encoder, pixel format and containers that hold the coding, by its name; decoders may go by another name."""


@pytest.mark.parametrize("coding", COPIED)
def test_remux_copies_every_coding_that_the_container_holds(tmp_path: Path, coding: str) -> None:
    codec, pix_fmt, suffixes = COPIED[coding]
    options = {"preset": "12", "svtav1-params": "lp=1"} if codec == "libsvtav1" else {"threads": "1"}
    times = [k / 25 for k in range(25)]
    for suffix in suffixes:
        source = encode(
            tmp_path / f"a{suffix}", grey_ramp(25), times, codec=codec, pix_fmt=pix_fmt, stream_options=options
        )
        for target in suffixes:
            out = tmp_path / f"out{target}"
            remux(source, clicks(1.0, 16_000, (0.3,)), 16_000, out)
            assert packets(out) == packets(source)
            assert probe(out).duration_s == pytest.approx(1.0, abs=2e-3)
            assert lag(read_audio(out, sample_rate=16_000, duration_s=1.0), clicks(1.0, 16_000, (0.3,))) == 0


def test_packets_that_a_container_refuses_are_encoded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packets of one time, as damaged or joined films have: MP4 takes none that is not later than the last."""
    source = encode(tmp_path / "a.mkv", grey_ramp(25), [k / 25 for k in range(25)])
    steady = media_write._in_decoding_order

    def stumbling(packets):
        for number, packet in enumerate(steady(packets)):
            packet.dts = 0 if number == 5 else packet.dts
            yield packet

    monkeypatch.setattr(media_write, "_in_decoding_order", stumbling)
    remux(source, clicks(1.0, 16_000, (0.3,)), 16_000, tmp_path / "b.mp4")
    (frames,) = read_frames(tmp_path / "b.mp4", [FrameRequest(fps=25, height=64, width=96)], duration_s=1.0)
    assert np.abs(np.array(index_of(frames)) - np.arange(25)).max() <= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mp4"]


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from teacher.media import remux, write_audio, write_video
folder, size = Path(sys.argv[1]), int(sys.argv[2])
sound = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000).astype(np.float32)
pictures = np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8)
source, out = folder / "a.mp4", folder / "out"
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
for path, write in (
    *((out / f"a{suffix}", lambda p: write_audio(p, sound, 16_000)) for suffix in (".wav", ".flac", ".ogg", ".mp3")),
    *((out / f"a{suffix}", lambda p: remux(source, sound, 16_000, p)) for suffix in (".mp4", ".mkv")),
    (out / "cut.mp4", lambda p: remux(source, sound, 16_000, p, duration_s=0.5)),
    (out / "new.mp4", lambda p: write_video(p, pictures, 25.0, sound, 16_000)),
):
    try:
        write(path)
        raise SystemExit(f"{path} was written")
    except OSError as error:
        assert error.strerror == "File too large" and str(path) in str(error), error
"""


@pytest.mark.parametrize("size", [50, 1000, 7000])
def test_a_disk_that_takes_no_more_is_named_and_nothing_is_left(tmp_path: Path, size: int) -> None:
    """A limit on the size of files stands for the full disk: both fail while writing, and this needs no disk of its
    own."""
    noise = np.random.default_rng(0).integers(0, 255, (25, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", noise, 25.0, clicks(1.0, 16_000), 16_000)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(size)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["2024-05-01T12:30:00", os.fsdecode(b"caf\xe9"), "x" * 250, "a b\nc'\"%d"])
def test_names_of_any_kind_are_written_and_read(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path(f"{name}.mp4")
    source.write_bytes(clip.read_bytes())
    (tmp_path / "out").mkdir()
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        for folder in (Path(), tmp_path / "out"):
            write_audio(folder / f"{name}{suffix}", clicks(1.0, 16_000), 16_000)
            assert len(read_audio(folder / f"{name}{suffix}", sample_rate=16_000, duration_s=1.0)) == 16_000
    remux(source, clicks(1.0, 16_000), 16_000, tmp_path / "out" / f"{name}.mp4")
    assert probe(tmp_path / "out" / f"{name}.mp4").has_audio


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_written_sound_is_scaled_instead_of_clipped(tmp_path: Path, suffix: str) -> None:
    wave = (3.0 * np.sin(np.linspace(0, 60, 16_000))).astype(np.float32)
    write_audio(tmp_path / f"a{suffix}", wave, 16_000)
    back = read_audio(tmp_path / f"a{suffix}", sample_rate=16_000)
    np.testing.assert_allclose(back, wave / np.abs(wave).max(), atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize(
    "wave",
    [np.zeros((2, 100), np.float32), np.zeros(0, np.float32), np.zeros(9, np.int16), np.full(9, np.nan, np.float32)],
)
def test_waves_must_be_finite_and_one_dimensional(tmp_path: Path, wave: np.ndarray) -> None:
    with pytest.raises(ValueError, match="wave must be"):
        write_audio(tmp_path / "a.wav", wave, 16_000)
    with pytest.raises(ValueError, match="wave must be"):
        write_video(tmp_path / "a.mp4", grey_ramp(5), 25.0, wave, 16_000)
    assert list(tmp_path.iterdir()) == []


def test_real_clips_of_the_shared_set() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"the shared clips are not at {SHARED}")
    for path in sorted(SHARED.glob("*.mp4"))[::9]:
        info = probe(path)
        began = time.perf_counter()
        frames = read_frames(
            path,
            [FrameRequest(fps=8, height=64, width=64), FrameRequest(fps=25, height=64, width=64, fit="crop")],
            duration_s=2.0,
        )
        wave = read_audio(path, sample_rate=16_000, duration_s=2.0)
        assert [f.shape for f in frames] == [(16, 3, 64, 64), (50, 3, 64, 64)]
        assert wave.shape == (32_000,)
        assert info.duration_s > 2.0
        assert time.perf_counter() - began < 5.0


CLOCK = 30_000
RATES = {
    "24": [k / 24 for k in range(36)],
    "25": [k / 25 for k in range(36)],
    "29.97": [k * 1001 / 30_000 for k in range(45)],
    "30": [k / 30 for k in range(45)],
    "60": [k / 60 for k in range(50)],
    "variable": [0.0, 0.1, 0.13, 0.5, 0.9, 0.95, 1.3],
    "0.7 s": [k / 10 for k in range(7)],
}
"""Presentation times by name; the last frame is shown as long as the one before it."""


def film(path: Path, times_s: list[float], *, reordered: bool = True) -> Path:
    """Silent H.264 with frames at exactly these times, in another order in the file (as encoders like it) or not."""
    ticks = [round(t * CLOCK) for t in times_s]
    ticks.append(2 * ticks[-1] - ticks[-2])
    with av.open(str(path), "w") as output:
        stream = output.add_stream(
            "libx264", rate=30, options={"crf": "5", "threads": "1"} | ({} if reordered else {"bf": "0"})
        )
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, CLOCK)
        for picture, at in zip([*grey_ramp(len(times_s)), None], ticks, strict=True):
            frame = None
            if picture is not None:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = at, Fraction(1, CLOCK)
            for packet in stream.encode(frame):
                packet.duration = ticks[ticks.index(packet.pts) + 1] - packet.pts
                output.mux(packet)
    return path


def frame_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(container.streams.video[0])]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("rate", RATES)
def test_any_frame_rate_goes_by_presentation_time_and_keeps_its_length(tmp_path: Path, rate: str, suffix: str) -> None:
    times = RATES[rate]
    end_s = 2 * times[-1] - times[-2]
    # Matroska counts in milliseconds, the others in at least 1 / CLOCK.
    tick_s = 1e-3 if suffix == ".mkv" else 1 / CLOCK
    # MP4 states how far decoding times are apart. Where frames are reordered and of unequal length, that is not how
    # long they are shown, and nobody knows when the last one ends; cameras of variable rate do not reorder.
    source = film(tmp_path / f"a{suffix}", times, reordered=suffix == ".mkv" or rate != "variable")
    assert probe(source).duration_s == pytest.approx(end_s, abs=2 * tick_s)
    asked_s = end_s - tick_s
    (frames,) = read_frames(source, [FrameRequest(fps=8, height=64, width=96)], duration_s=asked_s)
    due = [k / 8 for k in range(int(8 * asked_s))]
    first_after = [next((i for i, t in enumerate(times) if t >= d - tick_s), len(times) - 1) for d in due]
    assert index_of(frames) == first_after

    for kind, window in (("copied", None), ("anew", end_s)):
        for sample_rate, sound_s in ((16_000, end_s), (44_100, 0.2)):  # too short a sound is filled with silence
            out = tmp_path / f"{kind}-{sample_rate}{suffix}"
            remux(source, clicks(sound_s, sample_rate, (0.1,)), sample_rate, out, duration_s=window)
            assert frame_times(out) == pytest.approx(times, abs=2 * tick_s)
            assert probe(out).duration_s == pytest.approx(end_s, abs=2 * tick_s)
            assert kind == "anew" or packets(out) == packets(source)
            with av.open(str(out)) as container:
                stream = container.streams.audio[0]
                held = [(frame.time, frame.samples) for frame in container.decode(stream)]
                stated_s = None if stream.duration is None else float(stream.duration * stream.time_base)
            frame_s = 1024 / sample_rate
            assert held[0][0] == pytest.approx(0.0, abs=tick_s)
            # Sound is kept in whole AAC frames; what goes beyond the picture is less than one.
            assert -2 * tick_s <= sum(n for _, n in held) / sample_rate - end_s < frame_s + 2 * tick_s
            if suffix == ".mp4":  # its edit list states the length to the sample
                assert stated_s == pytest.approx(end_s, abs=2 * tick_s + 1 / sample_rate)


def test_the_first_frames_of_a_copied_matroska_stay(tmp_path: Path) -> None:
    """Matroska states no decoding times, and FFmpeg knows none for the first frames."""
    source = film(tmp_path / "a.mkv", RATES["25"])
    with av.open(str(source)) as container:
        assert next(container.demux(container.streams.video[0])).dts is None
    for name in ("b.mkv", "b.mp4", "b.mov"):
        remux(source, clicks(1.0, 16_000), 16_000, tmp_path / name)
        (frames,) = read_frames(tmp_path / name, [FrameRequest(fps=25, height=64, width=96)], duration_s=1.4)
        assert index_of(frames) == list(range(35))


def test_the_length_of_a_film_is_that_of_its_picture_and_not_of_its_sound(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        write_video(tmp_path / f"a{suffix}", grey_ramp(25), 25.0, clicks(1.7, 16_000), 16_000)
        assert probe(tmp_path / f"a{suffix}").duration_s == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("rate", "made"), [(8_000, 8_000), (16_000, 16_000), (44_100, 44_100), (96_000, 48_000)])
def test_mp3_has_a_constant_bit_rate_and_the_length_of_the_sound(tmp_path: Path, rate: int, made: int) -> None:
    wave = clicks(2.0, rate)
    write_audio(tmp_path / "a.mp3", wave, rate)
    back = read_audio(tmp_path / "a.mp3", sample_rate=rate)
    assert abs(len(back) - len(wave)) <= 2 * rate // made  # the padding of both ends is left out
    assert abs(lag(back, wave)) <= 1
    with av.open(str(tmp_path / "a.mp3")) as container:
        stream = container.streams.audio[0]
        assert stream.rate == made
        sizes = [packet.size for packet in container.demux(stream) if packet.size]
        bit_rate = 192_000 if made >= 32_000 else 128_000 if made >= 16_000 else 64_000
        frame = 1152 if made >= 32_000 else 576
    assert {abs(size - bit_rate / 8 * frame / made) < 1 for size in sizes} == {True}


def test_mp3_needs_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"flac"})
    with pytest.raises(ValueError, match=r"a\.mp3: this build of PyAV cannot write MP3 .* use \.flac or \.wav"):
        write_audio(tmp_path / "a.mp3", clicks(1.0, 16_000), 16_000)
    with pytest.raises(ValueError, match=r"a\.aac: the suffix must be one of \.wav, \.flac, \.ogg, \.mp3"):
        write_audio(tmp_path / "a.aac", clicks(1.0, 16_000), 16_000)
    assert list(tmp_path.iterdir()) == []


def test_a_long_vorbis_file_is_written(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.ogg", np.zeros(600 * 8000, np.float32), 8000)
    assert soundfile.info(tmp_path / "a.ogg").frames == 600 * 8000
