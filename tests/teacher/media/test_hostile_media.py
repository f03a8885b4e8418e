"""Files that mean harm end in one clear line, within seconds and little memory, and reach for nothing else.

Every file is read in a process of its own with an upper limit on memory (RLIMIT_AS) and on time.
"""

import json
import os
import socket
import struct
import subprocess
import sys
import wave as wave_file
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from teacher.media import (
    FrameRequest,
    MediaError,
    open_media,
    probe,
    read_audio,
    read_frames,
    remux,
    stream_infos,
    write_audio,
    write_video,
)
from teacher.media import open as media_open
from teacher.media import read as media_read

ROOT = Path(__file__).resolve().parents[3]
TIME_S = 25.0
"""For one reader of one file; the limits inside are 10 s for a packet and 20 s for a first frame."""
MEMORY = 2**30
"""Bytes beyond what the process has before it opens the file."""
READER = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from teacher.media import FrameRequest, MediaError, open_media, probe, read_audio, read_frames, remux, text_tags
def tags(path):
    with open_media(path) as container:
        return text_tags(container)
out = Path(sys.argv[1])
sound = np.zeros(16_000, np.float32)
uses = {
    "probe": lambda p: probe(p),
    "frames": lambda p: read_frames(p, [FrameRequest(fps=8, height=8, width=8)], duration_s=1.0),
    "audio": lambda p: read_audio(p, sample_rate=16_000, duration_s=1.0),
    "remux": lambda p: remux(p, sound, 16_000, out),
    "tags": tags,
}
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
for path in sys.argv[3:]:
    told = {}
    for name, use in uses.items():
        began = time.monotonic()
        try:
            use(Path(path))
            said = "fine"
        except MediaError as error:
            said = f"MediaError: {error}"
        except BaseException as error:
            said = f"{type(error).__name__} escaped: {error}"
        told[name] = (said, time.monotonic() - began)
    print(json.dumps(told), flush=True)
"""
LOCAL = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc are those of Linux")


def read_all(folder: Path, *paths: Path) -> list[dict[str, str]]:
    """What each reader says of each file; the time and the form of every answer are checked."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder / "never.mp4"), str(MEMORY), *map(str, paths)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=5 * TIME_S * len(paths),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = []
    for path, line in zip(paths, done.stdout.splitlines(), strict=True):
        told = json.loads(line)
        for reader, (said, took_s) in told.items():
            assert took_s < TIME_S, (path.name, reader, took_s)
            assert said == "fine" or said.startswith(f"MediaError: {path}: "), (path.name, reader, said)
            assert "\n" not in said
        answers.append({reader: said for reader, (said, _) in told.items()})
    return answers


def encode(path: Path, codec: str, pix_fmt: str, count: int = 10) -> bytes:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 16 + 4 * k, np.uint8), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path.read_bytes()


def patched(path: Path, content: bytes, *changes: tuple[bytes, int, bytes]) -> Path:
    """Write `content` with bytes replaced at offsets from the first place of a tag."""
    block = bytearray(content)
    for tag, offset, new in changes:
        at = block.index(tag) + offset
        block[at : at + len(new)] = new
    path.write_bytes(block)
    return path


@LOCAL
def test_files_that_are_cut_off_empty_or_of_another_kind(tmp_path):
    whole = tmp_path / "whole.mp4"
    write_video(whole, np.zeros((50, 64, 96, 3), np.uint8), 25.0, np.zeros(32_000, np.float32), 16_000)
    content = whole.read_bytes()
    files = {
        "empty.mp4": b"",
        "text.mp4": b"this is not a film\n" * 200,
        "json.mkv": b'{"mf-mjt": 1}' * 100,
        "page.webm": b"<!DOCTYPE html><html></html>" * 100,
        "zeros.mp4": bytes(100_000),
        "cut.mp4": content[: len(content) // 2],
        "head.mp4": content[:40],
        "riff.wav": b"RIFF\xff\xff\xff\xffWAVEfmt ",
        "flac.flac": b"fLaC" + b"\xff" * 60,
        "ogg.ogg": b"OggS" * 2000,
        "ebml.mkv": b"\x1aE\xdf\xa3" + b"\xff" * 500,
        "nothing.ts": b"G" + bytes(187),
    }
    for name, block in files.items():
        (tmp_path / name).write_bytes(block)
    for name, told in zip(files, read_all(tmp_path, *(tmp_path / name for name in files)), strict=True):
        assert "fine" not in told.values(), (name, told)
    assert not (tmp_path / "never.mp4").exists()


@LOCAL
def test_what_is_not_a_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    (tmp_path / "tty.mp4").symlink_to("/dev/tty")
    (tmp_path / "circle.mp4").symlink_to(tmp_path / "circle.mp4")
    (tmp_path / "folder.mp4").mkdir()
    paths = [tmp_path / f"{n}.mp4" for n in ("pipe", "zero", "tty", "folder", "circle", "missing")]
    paths += [Path("/dev/zero"), Path("/proc/self/mem"), Path("http://localhost/a.mp4"), Path("concat:a.mp4|b.mp4")]
    for path, told in zip(paths, read_all(tmp_path, *paths), strict=True):
        for said in told.values():
            assert any(w in said for w in ("is not a regular file", "cannot be read", "is empty")), (path, said)
            assert path.stem not in ("pipe", "zero", "folder") or "is not a regular file" in said, (path, said)


@LOCAL
def test_lists_that_point_elsewhere_reach_neither_files_nor_the_network(tmp_path):
    """The file they point at is a pipe: who opens it waits for ever. The address is a socket that counts callers."""
    os.mkfifo(tmp_path / "trap.ts")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        targets = ("trap.ts", str(tmp_path / "trap.ts"), f"file://{tmp_path}/trap.ts", url)
        paths = []
        for k, target in enumerate(targets):
            lists = {
                "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n",
                "ffconcat": f"ffconcat version 1.0\nfile '{target}'\nduration 5\n",
                "sdp": f"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=control:{target}\n",
                "mpd": f'<?xml?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{target}</BaseURL></MPD>',
                "asx": f"[Reference]\nRef1={target}\n",
            }
            for kind, text in lists.items():
                for suffix in (kind, "mp4"):
                    path = tmp_path / f"{kind}{k}.{suffix}"
                    path.write_text(text)
                    paths.append(path)
        for path, told in zip(paths, read_all(tmp_path, *paths), strict=True):
            assert "fine" not in told.values(), (path.name, told)
        with pytest.raises(TimeoutError):
            server.accept()


@LOCAL
def test_headers_that_claim_huge_pictures(tmp_path):
    png = encode(tmp_path / "png.avi", "png", "rgb24")
    bomb = png
    at = bomb.find(b"IHDR")
    while at >= 0:  # every picture says 100000 x 100000, with a right check sum
        head = b"IHDR" + struct.pack(">II", 100_000, 100_000) + bomb[at + 12 : at + 17]
        bomb = bomb[:at] + head + struct.pack(">I", zlib.crc32(head)) + bomb[at + 21 :]
        at = bomb.find(b"IHDR", at + 4)
    (tmp_path / "inside.avi").write_bytes(bomb)
    wide = struct.pack("<i", 100_000)
    raw = encode(tmp_path / "raw.avi", "rawvideo", "bgr24")
    mkv = encode(tmp_path / "h.mkv", "libx264", "yuv420p")
    jpeg = encode(tmp_path / "j.avi", "mjpeg", "yuvj420p")
    paths = [
        tmp_path / "inside.avi",
        patched(tmp_path / "both.avi", bomb, (b"strf", 12, wide), (b"strf", 16, wide)),
        patched(tmp_path / "wide.avi", raw, (b"strf", 12, wide)),
        patched(tmp_path / "large.avi", raw, (b"strf", 12, struct.pack("<ii", 14_000, 14_000))),
        patched(tmp_path / "jpeg.avi", jpeg, (b"\xff\xc0", 5, struct.pack(">HH", 65_500, 65_500))),
    ]
    (tmp_path / "wide.mkv").write_bytes(mkv.replace(b"\xb0\x81\x60", b"\xb0\x83\x01\x86\xa0", 1))
    paths.append(tmp_path / "wide.mkv")
    answers = dict(zip(paths, read_all(tmp_path, *paths), strict=True))
    for path, told in answers.items():
        assert told["probe"] != "fine", (path.name, told)
        assert told["frames"] != "fine", (path.name, told)
    assert "a picture of 100000x64 is thinner than 1:32" in answers[tmp_path / "wide.avi"]["probe"]


@LOCAL
def test_tables_that_claim_more_samples_than_the_file_holds(tmp_path):
    content = encode(tmp_path / "h.mp4", "libx264", "yuv420p")
    many = struct.pack(">I", 80_000_000)
    one_chunk = (b"stsc", 16, many)
    paths = [
        patched(
            tmp_path / "stsz.mp4", content, (b"stsz", 8, struct.pack(">I", 1) + many), one_chunk, (b"stts", 12, many)
        ),
        patched(tmp_path / "stts.mp4", content, (b"stts", 12, many)),
        patched(tmp_path / "two.mp4", content, (b"ctts", 12, many)),
    ]
    *answers, whole = read_all(tmp_path, *paths, tmp_path / "h.mp4")
    for path, told in zip(paths, answers, strict=True):
        for said in told.values():
            assert "its header claims 800000" in said, (path.name, said)
    assert whole["probe"] == "fine"


@LOCAL
def test_files_without_end(tmp_path):
    """A sparse file takes no room and no time to make, and hours to read."""
    good = tmp_path / "good.wav"
    write_audio(good, np.zeros(16_000, np.float32), 16_000)
    for name, content in (("a.mp3", b""), ("a.ts", b"G"), ("a.wav", good.read_bytes()), ("a.mpg", b"\0\0\1\xba")):
        (tmp_path / name).write_bytes(content)
        os.truncate(tmp_path / name, 1 << 40)
    paths = [tmp_path / name for name in ("a.mp3", "a.ts", "a.wav", "a.mpg")]
    for told in read_all(tmp_path, *paths):
        for said in told.values():
            assert "of it were never written" in said


def test_a_file_with_small_holes_is_read(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, "libx264", "yuv420p")
    os.truncate(path, 100 * 2**20)
    assert probe(path).has_video


@LOCAL
def test_sound_headers_that_lie(tmp_path):
    good = tmp_path / "good.wav"
    with wave_file.open(str(good), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(32_000))
    content = good.read_bytes()
    slow, fast, endless = (tmp_path / f"{n}.wav" for n in ("slow", "fast", "endless"))
    patched(slow, content, (b"fmt ", 12, struct.pack("<II", 1, 2)))
    patched(fast, content, (b"fmt ", 12, struct.pack("<II", 2**31 - 1, 2**31 - 1)))
    patched(endless, content, (b"data", 4, b"\xff\xff\xff\xff"), (b"RIFF", 4, b"\xff\xff\xff\xff"))
    told_slow, told_fast, told_endless = read_all(tmp_path, slow, fast, endless)
    assert "sound at 1 Hz is not one that can be read" in told_slow["audio"]
    assert "sound at 2147483647 Hz" in told_fast["audio"]
    assert told_endless["audio"] == "fine"
    assert probe(endless).duration_s == pytest.approx(1.0, abs=0.01)


def test_durations_beyond_reason_are_refused_before_anything_is_planned_from_them(tmp_path):
    content = encode(tmp_path / "h.mkv", "libx264", "yuv420p")
    at = content.index(b"\x44\x89\x88")  # Duration, 8 bytes
    path = tmp_path / "long.mkv"
    path.write_bytes(content[: at + 3] + struct.pack(">d", 1e15) + content[at + 11 :])
    with pytest.raises(MediaError, match=r"long\.mkv: states a duration of 1e\+12 s; from 0 to 86400 s can be used"):
        probe(path)
    told = content[: at + 3] + struct.pack(">d", 1e7) + content[at + 11 :]
    path.write_bytes(told)  # 10,000 s, of which 0.4 s are there
    assert probe(path).duration_s == 10_000.0
    with pytest.raises(MediaError, match=r"has only 0\.40 s of video"):
        read_frames(path, [FrameRequest(fps=8, height=8, width=8)], duration_s=10_000.0)


def test_a_frame_at_the_end_of_time_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for at in (0, 1, 25 * 200_000):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")
            frame.pts = at
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(MediaError, match=r"has a picture at 2e\+05 s; at most 86400 s can be used"):
        remux(path, np.zeros(1600, np.float32), 16_000, tmp_path / "b.mkv")
    assert not (tmp_path / "b.mkv").exists()


def test_frames_that_grow_on_the_way_are_not_decoded(tmp_path, monkeypatch):
    """The decoder itself is given the limit: here 64 x 96 pixels are one too many."""
    path = tmp_path / "a.mp4"
    encode(path, "libx264", "yuv420p")
    monkeypatch.setattr(media_open, "MAX_PIXELS", 64 * 96 - 1)
    monkeypatch.setattr(media_read, "check_picture", lambda *_: None)  # what the header says is believed
    with pytest.raises(MediaError):
        read_frames(path, [FrameRequest(fps=8, height=8, width=8)], duration_s=0.25)


def test_a_flood_of_frames_at_one_moment_ends(tmp_path, monkeypatch):
    path = tmp_path / "a.mkv"
    encode(path, "libx264", "yuv420p", count=60)
    assert read_frames(path, [FrameRequest(fps=8, height=8, width=8)], duration_s=2.0)
    monkeypatch.setattr(media_read, "MAX_FPS", 10)  # the file has 25
    with pytest.raises(MediaError, match="has more than 10 frames a second; its time stamps are damaged"):
        read_frames(path, [FrameRequest(fps=8, height=8, width=8)], duration_s=2.0)


def test_a_disk_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    encode(path, "libx264", "yuv420p")
    monkeypatch.setattr(media_open, "READ_TIMEOUT_S", 0.0)
    with pytest.raises(MediaError, match=r"a\.mp4: nothing can be read from it for 0 s"):
        probe(path)


def test_too_many_streams_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, np.zeros((5, 16, 16, 3), np.uint8), 25.0, np.zeros(3200, np.float32), 16_000)
    monkeypatch.setattr(media_open, "MAX_STREAMS", 1)
    with pytest.raises(MediaError, match=r"a\.mp4: "):
        read_audio(path, sample_rate=16_000)


def film(path: Path, *, tracks: int = 1, pictures: int = 1) -> bytes:
    """A second of picture and sound; every further stream is another recording."""
    with av.open(str(path), "w") as output:
        videos = [output.add_stream("libx264", rate=25) for _ in range(pictures)]
        sounds = [output.add_stream("aac", rate=16_000, layout="mono") for _ in range(tracks)]
        for video in videos:
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        for number, video in enumerate(videos):
            for k in range(25):
                level = 40 + 100 * number + k
                frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), level, np.uint8), format="rgb24")
                output.mux(video.encode(frame))
            output.mux(video.encode(None))
        for number, sound in enumerate(sounds):
            for start in range(0, 16_000, 1024):
                tone = np.sin(2 * np.pi * 500 * (number + 1) * np.arange(start, start + 1024) / 16_000)
                frame = av.AudioFrame.from_ndarray(0.3 * tone[None].astype(np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16_000, start
                output.mux(sound.encode(frame))
            output.mux(sound.encode(None))
    return path.read_bytes()


SHOWN = [FrameRequest(fps=5, height=8, width=8)]
SILENCE = np.zeros(16_000, np.float32)


@pytest.mark.parametrize(
    ("name", "tags", "codec"),
    [
        ("a.mp4", ((b"avc1", b"zzzz"), (b"avcC", b"zzzC")), "zzzz"),
        ("a.mkv", ((b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/XXX"),), "unknown"),
    ],
)
def test_a_picture_without_a_decoder_is_named_and_its_sound_read(tmp_path, name, tags, codec):
    path = tmp_path / name
    content = film(path)
    for old, new in tags:
        content = content.replace(old, new)
    path.write_bytes(content)
    for use in (
        probe,
        lambda p: read_frames(p, SHOWN, duration_s=1.0),
        lambda p: remux(p, SILENCE, 16_000, tmp_path / "out.mp4"),
    ):
        with pytest.raises(MediaError, match=rf"{name}: there is no decoder for its picture: codec {codec}"):
            use(path)
    assert len(read_audio(path, sample_rate=16_000, duration_s=1.0)) == 16_000
    with open_media(path) as container:
        assert [(s.kind, s.codec) for s in stream_infos(container)] == [("video", codec), ("audio", "aac")]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_sound_without_a_decoder_is_named_and_the_film_goes_without(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(film(path).replace(b"mp4a", b"ac-4").replace(b"esds", b"zzzC"))
    info = probe(path)
    assert (info.has_video, info.has_audio, info.width) == (True, False, 96)
    with pytest.raises(MediaError, match=r"a\.mp4: there is no decoder for its sound: codec ac4"):
        read_audio(path, sample_rate=16_000)
    remux(path, SILENCE, 16_000, tmp_path / "out.mp4")
    assert probe(tmp_path / "out.mp4").has_audio
    alone = tmp_path / "alone.mp4"
    alone.write_bytes(film(alone, pictures=0).replace(b"mp4a", b"zzzz").replace(b"esds", b"zzzC"))
    with pytest.raises(MediaError, match=r"alone\.mp4: there is no decoder for its sound: codec zzzz"):
        probe(alone)


def test_the_first_streams_that_can_be_decoded_are_used(tmp_path):
    path = tmp_path / "a.mp4"
    content = film(path, tracks=2, pictures=2)
    for old, new in ((b"avc1", b"zzzz"), (b"avcC", b"zzzC"), (b"mp4a", b"zzzz"), (b"esds", b"zzzC")):
        at = content.index(old, content.index(b"moov"))
        content = content[:at] + new + content[at + 4 :]
    path.write_bytes(content)
    info = probe(path)
    assert (info.has_video, info.has_audio) == (True, True)
    (frames,) = read_frames(path, SHOWN, duration_s=1.0)
    assert frames.min() > 120  # the second picture is brighter by 100
    heard = read_audio(path, sample_rate=16_000, duration_s=1.0)
    assert np.abs(np.fft.rfft(heard)).argmax() == 1000  # Hz, as the second tone
    remux(path, SILENCE, 16_000, tmp_path / "b.mp4")
    (frames,) = read_frames(tmp_path / "b.mp4", SHOWN, duration_s=1.0)
    assert frames.min() > 120


def fails_inside(file: str, error: BaseException) -> None:
    """Raise `error` as code of that file does."""
    space = {"error": error}
    exec(compile("def fail():\n    raise error.with_traceback(None)\nfail()", file, "exec"), space)


KINDS = [
    AttributeError("no attribute"),
    IndexError("list index out of range"),
    KeyError("key"),
    RuntimeError("two\nlines"),
    NotImplementedError("not yet"),
    ValueError("Conversion to numpy array with format `x` is not yet supported"),
    TypeError("an integer is required"),
    AssertionError("Container is not open"),
    OverflowError("int too large to convert"),
    ZeroDivisionError("Fraction(1, 0)"),
    BufferError("memoryview"),
    UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"),
]


@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
def test_every_kind_of_error_of_the_libraries_becomes_one_line_and_ours_stay(tmp_path, error):
    """PyAV's compiled code names its files like the first, its Python code like the second."""
    path = tmp_path / "a.mp4"
    encode(path, "libx264", "yuv420p")
    for file in ("av/container/input.py", av.__file__, soundfile.__file__):
        with pytest.raises(MediaError, match=r"a\.mp4: cannot be decoded: ") as caught, open_media(path):
            fails_inside(file, error)
        assert "\n" not in str(caught.value)
    with pytest.raises(type(error)) as passed, open_media(path):
        fails_inside(__file__, error)
    assert passed.value is error


@pytest.mark.parametrize("error", [MemoryError(), EOFError("end"), av.error.InvalidDataError(1, "Invalid data")])
def test_what_only_the_libraries_raise_becomes_one_line_wherever_it_arises(tmp_path, error):
    path = tmp_path / "a.mp4"
    encode(path, "libx264", "yuv420p")
    with pytest.raises(MediaError, match=r"a\.mp4: "), open_media(path):
        raise error


def test_a_transport_stream_that_gains_a_stream_on_the_way_is_read_to_its_end(tmp_path):
    """PyAV 18 fails with an IndexError after the last packet of such a file."""
    path = tmp_path / "a.ts"
    encode(path, "mpeg2video", "yuv420p", count=25)

    class Growing:
        def __init__(self, container):
            self.container = container

        def demux(self, stream):
            yield from self.container.demux(stream)
            raise IndexError("list index out of range")

    with open_media(path) as container:
        assert len(list(media_open.decode(Growing(container), container.streams.video[0]))) == 25


CONTAINERS = {
    "mp4": ("libx264", "aac"),
    "mkv": ("libx264", "aac"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "mp2"),
    "ts": ("mpeg2video", "mp2"),
    "mov": ("mjpeg", "pcm_s16le"),
}


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """One of: bytes of the header replaced, bytes anywhere, a run of zeros, a part left out or doubled, cut off."""
    block = bytearray(content)
    size = len(block)
    kind = random.integers(6)
    if kind <= 1:
        reach = min(size, 1500) if kind == 0 else size
        for at in random.integers(0, reach, random.integers(1, 12)):
            block[at] = random.integers(256)
        return bytes(block)
    begin = int(random.integers(size))
    end = min(size, begin + int(random.integers(1, 400)))
    if kind == 2:
        block[begin:end] = bytes(end - begin)
    elif kind == 3:
        del block[begin:end]
    elif kind == 4:
        block[begin:begin] = block[begin:end]
    else:
        del block[max(1, begin) :]
    return bytes(block)


def fuzz(folder: Path, suffix: str, count: int, seed: int) -> list[dict[str, str]]:
    """What every reader says of so many damaged films; each answer is "fine" or one line that names the file."""
    picture, sound = CONTAINERS[suffix]
    whole = folder / f"whole.{suffix}"
    with av.open(str(whole), "w") as output:
        video, audio = output.add_stream(picture, rate=25), output.add_stream(sound, rate=48_000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuvj420p" if picture == "mjpeg" else "yuv420p"
        for k in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * k, np.uint8), format="rgb24")
            output.mux(video.encode(frame))
        step = audio.codec_context.frame_size or 960
        for start in range(0, 19_200 // step * step, step):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, step), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, start
            output.mux(audio.encode(av.AudioResampler(audio.format, "mono", 48_000).resample(frame)[0]))
        output.mux(video.encode(None))
        output.mux(audio.encode(None))
    content = whole.read_bytes()
    random = np.random.default_rng(seed)
    made = [folder / f"f{k}.{suffix}" for k in range(count)]
    for path in made:
        path.write_bytes(damaged(content, random))
    return read_all(folder, whole, *made)[1:]


@LOCAL
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_damaged_films_of_every_container_end_in_one_line(tmp_path, suffix):
    fuzz(tmp_path, suffix, count=25, seed=3)


@LOCAL
@pytest.mark.slow
@pytest.mark.parametrize("suffix", CONTAINERS)
def test_hundreds_of_damaged_films_of_every_container_end_in_one_line(tmp_path, suffix):
    fuzz(tmp_path, suffix, count=400, seed=4)
