"""The sampling command: which inputs become which files, the best of several, stems, JSON lines and exit statuses."""

import hashlib
import io
import json
import os
import shutil
import sys
import tempfile

import numpy as np
import pytest
import soundfile

from eval.compare.ranker import Ranker
from eval.features.published_models import PublishedModels
from eval.metrics.motion import motion_score, read_motion
from scripts.sample import cli
from teacher.media import write_video
from teacher.sampling.jobs import fitting
from teacher.sampling.pipeline import Pipeline
from teacher.sampling.provenance import read_provenance
from tests.saved_student import save_student

RATE = 16_000


def film(path, frames=25, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(seed).integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8)
    write_video(path, pictures, 25.0, np.zeros(frames * 640, np.float32), RATE)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved student and two films."""
    folder = tmp_path_factory.mktemp("sample")
    save_student(folder / "student")
    for k in (1, 2):
        film(folder / "films" / f"film{k}.mp4", seed=k)
    return folder


def command(monkeypatch, folder, *arguments):
    """Exit status of mf-sample."""
    monkeypatch.setattr(sys, "argv", ["mf-sample", "--run", str(folder / "student"), *map(str, arguments)])
    try:
        cli()
    except SystemExit as left:
        return left.code
    return 0


@pytest.mark.parametrize("kind", ["flac", "wav", "ogg", "mp3"])
def test_words_become_a_file_that_tells_how_it_was_made(folder, tmp_path, monkeypatch, capsys, kind):
    arguments = ("--prompt", "a bell", "--seed", 5, "--guidance", 1.4, "--duration-s", 1.5, "--format", kind)
    assert command(monkeypatch, folder, *arguments, "--out", tmp_path) == 0
    sound = tmp_path / f"a_bell.{kind}"
    assert str(sound) in capsys.readouterr().out
    told = read_provenance(sound)
    assert (told.seed, told.prompt, told.licence, told.steps) == (5, "a bell", "MIT", 1)
    assert told.guidance_values["omega"] == 1.4
    if kind in ("flac", "wav"):
        assert soundfile.info(sound).frames == 1.5 * RATE


def test_one_bad_film_among_several_is_named_and_the_rest_are_made(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for k in (1, 2):
        (tmp_path / "in" / f"f{k}.mp4").write_bytes((folder / "films" / f"film{k}.mp4").read_bytes())
    (tmp_path / "in" / "bad.mp4").write_text("this is a text")
    status = command(monkeypatch, folder, "--video", tmp_path / "in", "--json", "--out", tmp_path / "out")
    told = capsys.readouterr()
    assert status == 1
    assert "bad.mp4" in told.err
    assert "1 of 3 inputs failed" in told.err
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert [line["name"] for line in lines] == ["f1", "f2"]
    for line in lines:
        assert len(line["files"]) == 2
        assert read_provenance(line["files"][1]).source == f"{line['name']}.mp4"
        assert line["provenance"]["source"] == f"{line['name']}.mp4"
    (tmp_path / "alone.mp4").write_text("this is a text")
    assert command(monkeypatch, folder, "--video", tmp_path / "alone.mp4", "--out", tmp_path / "out") == 2


def test_the_best_of_several_is_the_one_with_the_largest_score(folder, tmp_path, monkeypatch, capsys):
    video = folder / "films" / "film1.mp4"
    arguments = ("--video", video, "--seed", 3, "--best-of", 4, "--json", "--no-film", "--format", "wav")
    assert command(monkeypatch, folder, *arguments, "--out", tmp_path) == 0
    line = json.loads(capsys.readouterr().out)
    scores = {entry["seed"]: entry["score"] for entry in line["scores"]}
    assert sorted(scores) == [3, 4, 5, 6]
    assert line["seed"] == max(scores, key=scores.get)
    assert [p.name for p in tmp_path.iterdir()] == ["film1.wav"]
    wave, rate = soundfile.read(tmp_path / "film1.wav")
    by_hand = motion_score(read_motion(video, duration_s=1.0), wave, rate)
    assert by_hand == pytest.approx(scores[line["seed"]], abs=1e-3)  # 16-bit file
    with pytest.raises(ValueError, match=r"needs --judges\.synchformer"):
        Ranker.load("desync", PublishedModels(), duration_s=1.0, device="cpu")
    assert command(monkeypatch, folder, "--prompt", "rain", "--best-of", 2, "--out", tmp_path) == 2


def test_stems_add_up_to_their_mix(folder, tmp_path, monkeypatch):
    video = folder / "films" / "film2.mp4"
    arguments = ("--video", video, "--stems", "a drum", "a bell", "--format", "wav", "--quiet")
    assert command(monkeypatch, folder, *arguments, "--out", tmp_path) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "film2.a_bell.wav", "film2.a_drum.wav", "film2.mp4", "film2.wav"
    ]  # fmt: skip
    parts = [soundfile.read(tmp_path / f"film2.{name}.wav")[0] for name in ("a_drum", "a_bell")]
    mix = soundfile.read(tmp_path / "film2.wav")[0]
    total = sum(parts)
    assert np.abs(mix - total / max(1.0, np.abs(total).max())).max() < 1e-3
    assert (
        read_provenance(tmp_path / "film2.wav").prompt
        == "a mix of sounds made apart: a drum (seed 0) + a bell (seed 0)"
    )
    same = ("--video", video, "--stems", "a drum", "a drum!", "--out", tmp_path / "x")
    assert command(monkeypatch, folder, *same) == 2


def test_quiet_says_nothing_and_what_excludes_each_other_is_refused(folder, tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, folder, "--prompt", "rain", "--quiet", "--out", tmp_path) == 0
    assert capsys.readouterr().out == ""
    for wrong in (("--quiet", "--json"), ("--stems", "a", "b"), ("--best-of", 0)):
        assert command(monkeypatch, folder, "--prompt", "rain", *wrong, "--out", tmp_path) == 2
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "taken").write_text("x")
    assert command(monkeypatch, folder, "--prompt", "rain", "--out", tmp_path / "taken") == 2


def test_a_film_given_is_never_written_to(folder, tmp_path, monkeypatch, capsys):
    film(tmp_path / "mine.mp4")
    film(tmp_path / "other.mp4", seed=1)
    before = (tmp_path / "mine.mp4").read_bytes()
    assert command(monkeypatch, folder, "--video", tmp_path / "mine.mp4", "--out", tmp_path) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert command(monkeypatch, folder, "--video", tmp_path, "--out", tmp_path) == 2
    assert "2 of 2 inputs failed; nothing was made" in capsys.readouterr().err
    assert (tmp_path / "mine.mp4").read_bytes() == before
    assert command(monkeypatch, folder, "--video", tmp_path / "mine.mp4", "--no-film", "--out", tmp_path) == 0
    assert command(monkeypatch, folder, "--prompt", " ", "--out", tmp_path) == 2


def unheard(monkeypatch):
    """From here on no sound may be made."""
    monkeypatch.setattr(Pipeline, "__call__", lambda *_, **__: pytest.fail("a sound was made that cannot be written"))


def test_a_file_of_somebody_else_is_not_replaced_and_a_result_is(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        film(tmp_path / "in" / f"{name}.mov", seed=1)
    original = film(tmp_path / "a.mp4", seed=2).read_bytes()  # beside the film, and not given
    assert command(monkeypatch, folder, "--video", tmp_path / "in", "--out", tmp_path) == 1
    told = capsys.readouterr()
    assert "a.mp4 exists already and was not made by this program" in told.err
    assert "1 of 2 inputs failed" in told.err
    assert (tmp_path / "a.mp4").read_bytes() == original
    assert not (tmp_path / "a.flac").exists()  # refused before anything was made
    made = read_provenance(tmp_path / "b.mp4")
    assert command(monkeypatch, folder, "--video", tmp_path / "in" / "b.mov", "--seed", 9, "--out", tmp_path) == 0
    assert (made.seed, read_provenance(tmp_path / "b.mp4").seed) == (0, 9)

    unheard(monkeypatch)
    for content in (b"", b"my notes"):
        (tmp_path / "rain.flac").write_bytes(content)
        assert command(monkeypatch, folder, "--prompt", "rain", "--out", tmp_path) == 2
        assert (tmp_path / "rain.flac").read_bytes() == content
    (tmp_path / "hail.flac").symlink_to(tmp_path / "nowhere")
    assert command(monkeypatch, folder, "--prompt", "hail", "--out", tmp_path) == 2
    (tmp_path / "b.a_drum.flac").write_text("mine")
    stems = ("--video", tmp_path / "in" / "b.mov", "--stems", "a drum", "a bell", "--out", tmp_path)
    assert command(monkeypatch, folder, *stems) == 2
    assert capsys.readouterr().err.count("was not made by this program") == 4


def test_what_cannot_be_written_is_refused_before_a_sound_is_made(folder, tmp_path, monkeypatch, capsys):
    unheard(monkeypatch)
    (tmp_path / "file").write_text("x")
    for out in ("/proc/mf-sample", tmp_path / "file" / "deeper"):
        assert command(monkeypatch, folder, "--prompt", "rain", "--out", out) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert command(monkeypatch, folder, "--prompt", "rain", "--out", tmp_path / "new") == 2
    assert f"No space left on device: '{tmp_path / 'new'}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x" * 251, "x" * 251),
        ("é" * 125 + "x", "é" * 125 + "x"),
        (os.fsdecode(b"caf\xe9"), "caf%E9"),
        ("a:b\nc'\"\\d", "a:b%0Ac'\"%5Cd"),
    ],
)
def test_films_of_any_name_get_their_sound(folder, tmp_path, monkeypatch, name, told):
    video = film(tmp_path / "film.mp4").rename(tmp_path / f"{name}.mp4")
    for _ in range(2):  # the second time over the results of the first
        assert command(monkeypatch, folder, "--video", video, "--json", "--out", tmp_path / "out") == 0
    sound, again = sorted((tmp_path / "out").iterdir())
    assert (sound.suffix, again.suffix, sound.stem) == (".flac", ".mp4", again.stem)
    assert read_provenance(again).source == read_provenance(sound).source == f"{told}.mp4"
    assert fitting(f"{name}.{'y' * 250}") != fitting(f"{name}.{'y' * 251}")


def test_prompts_of_any_kind_get_their_sound(folder, tmp_path, monkeypatch):
    assert command(monkeypatch, folder, "--prompt", os.fsdecode(b"caf\xe9"), "--out", tmp_path / "bytes") == 0
    assert read_provenance(tmp_path / "bytes" / "caf.flac").prompt == "caf\ufffd"
    long = "bell é " * 9000
    assert command(monkeypatch, folder, "--prompt", long, "--out", tmp_path / "long") == 0
    (file,) = (tmp_path / "long").iterdir()
    told = read_provenance(file).prompt
    digest = hashlib.sha256(long.encode()).hexdigest()
    assert told.endswith(f" ... (shortened; 63,000 characters, SHA-256 {digest})")
    assert long.startswith(told[: told.index(" ... (shortened")])


@pytest.mark.parametrize("name", ["~home", "..odd", 'a"b', "new\nline", "50% \u2028"])
def test_run_folders_of_any_name_are_sampled(folder, tmp_path, monkeypatch, name):
    shutil.copytree(folder / "student", tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["", "--run", str(tmp_path / name), "--prompt", "bell", "--out", str(tmp_path)])
    cli()
    model = read_provenance(tmp_path / "bell.flac").model
    assert model.isprintable()
    assert model == name.replace("~", "%7E").replace("..", "%2E.").replace("\n", "%0A").replace("\u2028", "%E2%80%A8")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_lacks_letters_stops_nothing(folder, tmp_path, monkeypatch, encoding):
    (tmp_path / "in").mkdir()
    for name in ("雨", "\u0437\u0432\u0443\u043a", "plain"):
        film(tmp_path / "in" / "x.mp4").rename(tmp_path / "in" / f"{name}.mp4")
    (tmp_path / "in" / "\u6ce2.mp4").write_text("no film")
    for kind in ((), ("--json",)):
        console, errors = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", console)
            patch.setattr(sys, "stderr", errors)
            assert command(patch, folder, "--video", tmp_path / "in", "--out", tmp_path / "out", *kind) == 1
        console.flush(), errors.flush()
        lines = console.buffer.getvalue().decode(encoding).splitlines()
        assert len(lines) == 3
        assert "\\u6ce2.mp4: " in errors.buffer.getvalue().decode(encoding)
    assert {json.loads(line)["name"] for line in lines} == {"雨", "звук", "plain"}
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_captions_of_one_film_get_a_sound_each_called_by_their_ids(folder, tmp_path, monkeypatch):
    film(tmp_path / "film.mp4")
    film(tmp_path / "other.mp4")
    rows = [{"id": f"clip/{k}", "file": "film.mp4", "caption": text} for k, text in enumerate(("rain", "hail", "wind"))]
    rows.append({"id": "clip/3", "file": "other.mp4", "caption": "snow"})
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    assert command(monkeypatch, folder, "--video", tmp_path / "list.jsonl", "--no-film", "--out", out) == 0
    told = {path.name: read_provenance(path).prompt for path in out.iterdir()}
    assert told == {"clip_0.flac": "rain", "clip_1.flac": "hail", "clip_2.flac": "wind", "other.flac": "snow"}


def test_the_best_of_several_is_the_same_file_as_its_seed_alone(folder, tmp_path, monkeypatch, capsys):
    video = folder / "films" / "film1.mp4"
    common = ("--video", video, "--guidance", 1.4, "--json")
    assert command(monkeypatch, folder, *common, "--best-of", 8, "--out", tmp_path / "best") == 0
    seed = json.loads(capsys.readouterr().out)["seed"]
    assert command(monkeypatch, folder, *common, "--seed", seed, "--out", tmp_path / "alone") == 0
    for name in ("film1.flac", "film1.mp4"):
        assert (tmp_path / "best" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_a_film_that_no_decoder_reads_is_named_and_the_rest_are_made(folder, tmp_path, monkeypatch, capsys):
    content = film(tmp_path / "in" / "a.mp4").read_bytes()
    (tmp_path / "in" / "b.mp4").write_bytes(content.replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    (tmp_path / "in" / "c.mp4").write_bytes(content.replace(b"mp4a", b"zzzz").replace(b"esds", b"zzzC"))
    assert command(monkeypatch, folder, "--video", tmp_path / "in", "--out", tmp_path / "out") == 1
    assert "b.mp4: there is no decoder for its picture: codec zzzz" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.flac", "a.mp4", "c.flac", "c.mp4"]
