"""Provenance: what is written into every kind of file comes back, what is not ours is told apart, damage is named."""

import datetime
import hashlib
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from meanflow import Adaptive, Guidance
from meanflow.guidance import JointGuidance
from scripts import inspect_file
from teacher.files import file_sha256, same_digest
from teacher.files.errors import WeightsError
from teacher.media import MediaError, remux, write_audio, write_video
from teacher.media.write import MAX_COMMENT
from teacher.sampling.pipeline import SamplingConfig
from teacher.sampling.provenance import (
    Provenance,
    ProvenanceError,
    describe,
    guidance_words,
    made_here,
    parse_line,
    read_provenance,
)
from teacher.weights.loading import identify, which_weights

RATE = 16_000
WAVE = (0.5 * np.sin(np.arange(RATE) / 20)).astype(np.float32)
FRAMES = np.full((25, 16, 16, 3), 100, dtype=np.uint8)
NASTY = 'rain; "wind"\n\t\\ = #1, 音 Münze 🎧 \x00\x1b[31m'
SAID = Provenance(
    licence="CC BY-NC 4.0",
    model="student",
    weights="ema-0.05",
    model_digest="0123456789abcdef" * 4,
    teacher="teacher",
    teacher_digest="0123456789ab",
    seed=7,
    steps=1,
    solver="euler",
    guidance="classifier-free, scale 1.4",
    guidance_values={"type": "Guidance", "omega": 1.4},
    duration_s=1.0,
    prompt=NASTY,
    source="clip.mp4",
    source_sha256="f" * 64,
    precision="float32",
    device="cpu",
    version="0.1.0",
    torch="2.8.0",
    date="2026-11-21",
)
MADE = {"duration_s": 1.0, "precision": "float32", "device": "cpu"}
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
FILMS = (".mp4", ".mov", ".m4v", ".mkv")


def write(path: Path, comment: str | None) -> Path:
    if path.suffix in SOUNDS:
        write_audio(path, WAVE, RATE, comment=comment)
    else:
        write_video(path, FRAMES, 25.0, WAVE, RATE, comment=comment)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("secret-place") / "student"
    folder.mkdir()
    config = {"run": {"teacher": "/home/someone/teacher-25"}, "digests": {"teacher": "48a1a94e6a5c"}, "licence": "CC0"}
    (folder / "config.json").write_text(json.dumps(config))
    for value, name in enumerate(("model", "ema-0.05", "codec")):
        save_file({"x": torch.full((4,), float(value))}, folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("suffix", [*SOUNDS, *FILMS])
def test_every_format_gives_back_what_was_said(tmp_path, suffix):
    assert read_provenance(write(tmp_path / f"a{suffix}", SAID.to_line())) == SAID
    # 5000 characters outside ASCII are 30,000 in JSON, close to MAX_COMMENT.
    long = replace(SAID, prompt="音" * 5000, negative_prompt=None)
    assert len(long.to_line()) > 0.9 * MAX_COMMENT
    assert read_provenance(write(tmp_path / f"b{suffix}", long.to_line())) == long


@pytest.mark.parametrize("suffix", [*SOUNDS, *FILMS])
def test_files_of_others_say_nothing(tmp_path, suffix):
    assert read_provenance(write(tmp_path / f"a{suffix}", None)) is None
    for k, comment in enumerate(("mf-mjt was here", '{"other": 1}', '{"tool": {"mf-mjt": 1}}', "{")):
        assert read_provenance(write(tmp_path / f"b{k}{suffix}", comment)) is None


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".mp4", ".mov"])
def test_the_same_sound_of_the_same_day_is_the_same_file(tmp_path, suffix):
    once, twice = (write(tmp_path / f"{n}{suffix}", SAID.to_line()).read_bytes() for n in "ab")
    assert once == twice


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_new_sound_under_a_film_replaces_what_the_film_said(tmp_path, suffix):
    with av.open(str(tmp_path / f"b{suffix}"), "w") as output:
        output.metadata.update({"title": "holiday", "location": "+52.5+013.4/"})
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for picture in FRAMES:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    film = tmp_path / f"b{suffix}"
    assert b"holiday" in film.read_bytes()
    for window in ({}, {"duration_s": 0.5}):
        remux(film, WAVE, RATE, tmp_path / f"c{suffix}", comment=SAID.to_line(), **window)
        assert read_provenance(tmp_path / f"c{suffix}") == SAID
        assert b"holiday" not in (tmp_path / f"c{suffix}").read_bytes()
        assert b"+52.5" not in (tmp_path / f"c{suffix}").read_bytes()
    remux(film, WAVE, RATE, tmp_path / f"d{suffix}")
    assert read_provenance(tmp_path / f"d{suffix}") is None


def change(**said: object) -> str:
    return json.dumps(SAID.plain() | said)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (SAID.to_line()[:200], "is damaged"),
        (SAID.to_line()[:-1] + ', "seed": NaN}', "NaN is not a number"),
        ('{"mf-mjt": 1}', "it lacks .*'date'.*'model_digest'"),
        (change(seed="7"), "seed must be int, got '7'"),
        (change(seed=True), "seed must be int, got True"),
        (change(seed=1 << 70), "seed must have at most 64 bits"),
        (change(steps=0), "must be positive"),
        (change(duration_s=-1), "must be positive"),
        (change(model_digest="xyz"), "model_digest must be 12 to 64 hexadecimal digits"),
        (change(source="/home/me/clip.mp4"), "source must be the name of a file"),
        (change(date="yesterday"), "date must be YYYY-MM-DD"),
        (change(colour="red"), r"unknown fields \['colour'\]"),
        ('{"mf-mjt": 2, "anything": "else"}', "is of version 2, this program reads up to 1"),
        ('{"mf-mjt": ' + "[" * 15_000, "is damaged"),
        ('{"mf-mjt": 1, "seed": ' + "9" * 9000 + "}", "is damaged"),
        ('{"mf-mjt": 1, "prompt": "' + "x" * MAX_COMMENT + '"}', "at most 32000 are written"),
    ],
)
def test_damage_is_named_in_one_line(tmp_path, line, reason):
    with pytest.raises(ProvenanceError, match=reason) as caught:
        parse_line(line)
    assert "\n" not in str(caught.value)
    if len(line) <= MAX_COMMENT:
        with pytest.raises(ProvenanceError, match=r"a\.flac: its provenance"):
            read_provenance(write(tmp_path / "a.flac", line))


def test_what_is_no_media_file_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_text(SAID.to_line())
    with pytest.raises(MediaError, match=r"a\.mp4: is not a media file"):
        read_provenance(tmp_path / "a.mp4")


def test_tags_in_other_encodings_do_not_hide_the_file(tmp_path):
    path = write(tmp_path / "a.wav", "Munze")
    path.write_bytes(path.read_bytes().replace(b"Munze", b"M\xfcnze"))
    assert read_provenance(path) is None


def test_comments_too_long_for_some_format_are_refused_and_not_dropped(tmp_path):
    with pytest.raises(ValueError, match="prompts are too long for the tags of a file"):
        replace(SAID, prompt="x" * MAX_COMMENT).to_line()
    for suffix in (".wav", ".mp4"):
        with pytest.raises(ValueError, match="comment must have at most 32000 bytes, got 32001"):
            write(tmp_path / f"a{suffix}", "x" * 32_001)
        write(tmp_path / f"a{suffix}", "x" * 32_000)
    with av.open(str(tmp_path / "a.wav")) as container:
        assert container.metadata["comment"] == "x" * 32_000


@pytest.mark.parametrize("name", ["/srv/run", "~/run", "..", "C:\\run", "\\\\host\\run", ""])
def test_places_on_a_machine_are_refused(name):
    with pytest.raises(ValueError, match="model must be a name"):
        replace(SAID, model=name)
    assert replace(SAID, model="owner/student").model == "owner/student"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("student", "student"),
        ("owner/student", "owner/student"),
        ("~home", "%7Ehome"),
        ("..odd", "%2E.odd"),
        ("C:\\run", "%43:\\run"),
        ("a\n\x1b[31m\u2028b", "a%0A%1B[31m%E2%80%A8b"),
        ("caf\udce9 \ud800", "caf%E9 %ED%A0%80"),
        ("", "unnamed"),
    ],
)
def test_names_of_any_kind_are_written_printable(run, tmp_path, name, written):
    said = describe(replace(identify(run), name=name, teacher=name), SamplingConfig(), **MADE)
    assert (said.model, said.teacher) == (written, written)
    assert parse_line(said.to_line()) == said


def test_prompts_too_long_for_the_tags_are_shortened_and_shorter_ones_are_not(run):
    for prompt in ("é" * 5000, "x" * 30_000):
        assert describe(identify(run), SamplingConfig(), prompt=prompt, **MADE).prompt == prompt
    prompts = {"prompt": "音" * 45_000, "negative_prompt": "hum " * 20_000}
    said = describe(replace(identify(run), licence="x" * 50_000), SamplingConfig(), **prompts, **MADE)
    assert len(said.to_line()) <= MAX_COMMENT
    for name, prompt in prompts.items():
        begin, _, note = getattr(said, name).partition(" ... (shortened; ")
        assert prompt.startswith(begin)
        assert len(begin) > 1500
        assert note == f"{len(prompt):,} characters, SHA-256 {hashlib.sha256(prompt.encode()).hexdigest()})"


@pytest.mark.parametrize("suffix", [*SOUNDS, *FILMS])
def test_files_of_this_project_are_known_in_every_version(tmp_path, suffix):
    later = SAID.to_line().replace('"mf-mjt": 1', '"mf-mjt": 9', 1)
    for comment in (SAID.to_line(), later, later[:60], "licence of the weights: MIT; 1 step(s), guidance 1, seed 0"):
        assert made_here(write(tmp_path / f"a{suffix}", comment))
    for comment in (None, "my holiday", '{"made": "elsewhere"}', 'the "mf-mjt": 1 of it'):
        assert not made_here(write(tmp_path / f"a{suffix}", comment))
    (tmp_path / f"a{suffix}").write_bytes(b"my notes")
    assert not made_here(tmp_path / f"a{suffix}")


def test_a_run_folder_is_identified_by_its_files(run, tmp_path):
    source = write(tmp_path / "clip.mp4", None)
    model = identify(run)
    assert (model.name, model.weights, model.licence) == ("student", "ema-0.05", "CC0")
    assert (model.teacher, model.teacher_digest) == ("teacher-25", "48a1a94e6a5c")
    assert identify(run, "model").digest == file_sha256(run / "model.safetensors") != model.digest
    sampling = SamplingConfig(steps=3, guidance=Guidance(omega=1.4, std_rescale=0.5), seed=5, shift=2.0)
    said = describe(
        model, sampling, duration_s=1.0, precision="float32", device="cuda:1", prompt="rain", source=source,
        day=datetime.date(2026, 11, 21),
    )  # fmt: skip
    assert (said.seed, said.steps, said.solver, said.shift, said.device) == (5, 3, "euler", 2.0, "cuda")
    assert said.guidance_values["omega"] == 1.4
    assert said.source_sha256 == file_sha256(source)
    assert parse_line(said.to_line()) == said
    for private in ("secret-place", "someone", str(tmp_path), tmp_path.name):
        assert private not in said.to_line()
    with pytest.raises(WeightsError, match=r"no weights 'ema-0\.9'"):
        identify(run, "ema-0.9")


def test_every_number_of_the_sampling_is_kept(run):
    sampling = SamplingConfig(solver=Adaptive(rtol=0.01), guidance=JointGuidance(video=2.0, text=3.0))
    said = describe(identify(run), sampling, duration_s=2.0, precision="demo", device="cpu", seed=9)
    assert said.seed == 9
    assert said.solver == "adaptive"
    assert {f.name for f in fields(Adaptive)} <= set(said.solver_values or {})
    assert {f.name for f in fields(JointGuidance)} <= set(said.guidance_values)
    assert parse_line(said.to_line()) == said


def test_guidance_in_words():
    assert guidance_words(Guidance()) == "none"
    assert guidance_words(Guidance(omega=2.0, rescale=False)) == "classifier-free, scale 2"
    assert guidance_words(JointGuidance(video=2.0)).startswith("separate scales, 2 for video and 1 for text")
    assert guidance_words(Guidance(omega=2.0, interval=(0.0, 0.5))).endswith("times 0 to 0.5")


def test_digests_agree_as_far_as_both_go_but_never_on_little(run):
    digest = file_sha256(run / "model.safetensors")
    assert which_weights(digest, run) == "model"
    assert which_weights(digest[:12], run) == "model"
    assert which_weights(file_sha256(run / "codec.safetensors"), run) is None
    assert same_digest("a" * 12, "a" * 64)
    assert not same_digest("a" * 11, "a" * 64)


def test_a_changed_file_has_another_digest(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    before = file_sha256(path)
    path.write_bytes(b"other")
    assert file_sha256(path) != before


def called(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["mf-inspect", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        inspect_file.cli()
    return int(left.value.code or 0), capsys.readouterr().out


def test_the_command_tells_found_from_missing_from_unreadable(tmp_path, monkeypatch, capsys, run):
    good, plain, broken = (tmp_path / name for name in ("good.flac", "plain.mp4", "broken.wav"))
    mine = replace(SAID, model_digest=file_sha256(run / "model.safetensors"))
    write(good, mine.to_line())
    write(plain, None)
    broken.write_bytes(b"")
    status, text = called(monkeypatch, capsys, good)
    assert status == 0
    assert "1.000 s" in text
    assert "audio: flac, 16000 Hz, 1 channel(s)" in text
    assert "CC BY-NC 4.0" in text
    assert "\x1b" not in text  # of the prompt; it would steer the terminal
    assert r"\x1b[31m" in text
    status, text = called(monkeypatch, capsys, plain)
    assert status == 1
    assert "made by something else, or stripped" in text
    assert "video: h264, 16x16, 25 frames/s" in text
    status, text = called(monkeypatch, capsys, good, broken, plain)
    assert status == 2
    assert "is empty (0 bytes)" in text
    assert called(monkeypatch, capsys, good, "--check-model", run)[0] == 0
    write(good, SAID.to_line())
    status, text = called(monkeypatch, capsys, good, "--check-model", run)
    assert status == 1
    assert "made by that model? no" in text
    write(good, SAID.to_line()[:300])
    status, text = called(monkeypatch, capsys, good)
    assert status == 2
    assert "its provenance is damaged" in text


def test_the_command_answers_in_json_lines(tmp_path, monkeypatch, capsys, run):
    good, broken = write(tmp_path / "good.mp3", SAID.to_line()), tmp_path / "broken.mp4"
    broken.write_text("no film")
    status, text = called(monkeypatch, capsys, good, broken, "--json", "--check-model", run)
    first, second = (json.loads(line) for line in text.splitlines())
    assert status == 2
    assert first["provenance"]["prompt"] == NASTY
    assert first["provenance"]["guidance_values"] == {"type": "Guidance", "omega": 1.4}
    assert first["streams"][0]["sample_rate"] == 16_000
    assert first["check_model"] == {"same": False, "weights": None}
    assert (first["status"], second["status"]) == (1, 2)
    assert second["provenance"] is None
    assert "is not a media file" in second["error"]


def test_the_command_runs_as_a_program(tmp_path):
    path = write(tmp_path / "a.wav", SAID.to_line())
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-m", "scripts.inspect_file", str(path), "--check-model", str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "holds no weights" in done.stderr


def test_sound_is_exact_in_wav_and_flac_and_as_long_in_mp3_and_ogg(tmp_path):
    steps = np.rint(WAVE * 32767) / 32768  # representable in 16 bits
    for suffix in (".wav", ".flac"):
        write_audio(tmp_path / f"a{suffix}", steps.astype(np.float32), RATE)
        np.testing.assert_array_equal(soundfile.read(tmp_path / f"a{suffix}", dtype="float32")[0], steps)
    write_audio(tmp_path / "a.ogg", WAVE, RATE)
    assert soundfile.info(tmp_path / "a.ogg").frames == RATE
