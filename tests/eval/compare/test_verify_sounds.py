"""A small comparison from extracted videos to checked rows: `mf-verify --data` hears the sounds again."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.compare.comparison import Comparison
from eval.compare.entries import Entry
from eval.compare.rows import read_rows
from eval.compare.sweep import Origin, SavedAudio
from eval.compare.test_set import TestSet
from eval.compare.training_sounds import TrainingSounds
from eval.features.published_models import PublishedModels
from scripts.verify import cli
from teacher.features.codec import load_codec
from teacher.features.config import ExtractConfig
from teacher.features.extract import extract
from teacher.files.processes import Processes
from teacher.lists.manifest import Item
from teacher.media import write_audio, write_video

RATE = 16_000
EVENTS = (0.2, 0.6)


def sound(seed: int) -> np.ndarray:
    """A second with two hits in faint noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(RATE) / RATE
    hits = sum((t >= s) * np.exp(-25 * np.maximum(t - s, 0)) for s in EVENTS)
    return (0.4 * hits * np.sin(2 * np.pi * (300 + 150 * seed) * t) + 0.01 * rng.standard_normal(RATE)).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """data/: eight training and four test videos; run/: rows of floors and of a student at two guidance scales."""
    root = tmp_path_factory.mktemp("compared")
    items = []
    for k in range(12):
        path, picture = root / f"{k}.mp4", np.full((10, 32, 32, 3), 20 * k, np.uint8)
        write_video(path, picture, 10.0, sound(k), RATE)
        split = "train" if k < 8 else "test"
        items.append(Item(id=f"clip{k}", path=path, caption=f"{k}", label="ab"[k % 2], split=split, events_s=EVENTS))
    extract(items, root / "data", ExtractConfig(duration_s=1.0, shard_size=4, workers=0))
    training = TrainingSounds.read(root / "data")
    sources, clip_scorers = PublishedModels(greatest_hits=True).load(duration_s=1.0, device="cpu", cache=root / "cache")
    test = TestSet.build(
        root / "data", video=True, max_clips=4, sources=(training.source, *sources), clip_scorers=clip_scorers,
        cache=root / "cache", part_size=3,
    )  # fmt: skip
    real = test.waves(0, 4)
    codec = load_codec(root / "data")

    def generate(conditions, steps, seeds):
        noise = torch.stack([torch.randn(RATE, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return 0.8 * real[: len(seeds)] + 0.05 / steps * noise

    comparison = Comparison(
        entries=tuple(
            Entry(
                name="student", kind="student", generate=generate, settings={"guidance": w}, guidance=w,
                evaluations_per_step=1, params=7,
            )
            for w in (1.0, 1.4)
        ),
        steps=(1,),
        seeds=(0, 1),
        rows_path=root / "run" / "rows.jsonl",
        origin=Origin(config_digest="", run_id="run", command="compare"),
        codec={"codec": codec.digest},
        roundtrip=lambda waves: codec.decode(codec.encode(waves)),
        processes=Processes(root / "processes"),
        audio=SavedAudio(folder=root / "run" / "media", count=2, seed=0),
        part_size=3,
    )  # fmt: skip
    for rows in (
        comparison.reference("vta", test, training),
        *(comparison.rows("vta", test, c) for c in comparison.entries),
    ):
        assert len(list(rows)) == 2
    return root


@pytest.fixture
def copy(compared, tmp_path) -> Path:
    """rows.jsonl of a run that may be changed."""
    return shutil.copytree(compared / "run", tmp_path / "run") / "rows.jsonl"


def verify(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mf-verify", *map(str, arguments)])
    try:
        cli()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_rows_are_those_of_a_comparison(compared):
    rows = read_rows(compared / "run" / "rows.jsonl")
    assert [(r.model, r.guidance, r.seed) for r in rows] == [
        ("reference", 1.0, 0), ("codec", 1.0, 0), *(("student", w, s) for w in (1.0, 1.4) for s in (0, 1)),
    ]  # fmt: skip
    assert all(row.metrics["onset_f1"] > 0.9 for row in rows[:2])
    assert all("gh_f1" in row.metrics for row in rows)
    assert "kl" not in rows[0].metrics  # of real sound
    assert "kl" in rows[1].metrics


def test_everything_agrees_from_the_sounds_too(compared, copy, monkeypatch, capsys):
    arguments = ("--rows", copy, "--all", "--data", compared / "data", "--verbose")
    assert verify(monkeypatch, *arguments, "--judges.greatest-hits") == 0
    printed = capsys.readouterr().out
    assert "0 differ" in printed
    assert "not computed" not in printed
    for cell in ("frechet", "frechet low", "frechet bias", "inception_score", "onset_f1", "gh_accuracy", "gh_ap high"):
        for model in ("reference", "codec"):
            assert f"vta {model}, 0 steps, seed 0: {cell} expected" in printed
    lines = [line for line in printed.splitlines() if "the real sounds of the data" in line]
    assert len(lines) == len(set(lines)) > 40
    for score in ("kl", "hits", "gh_accuracy"):
        assert printed.count(f": {score} of clip8 expected") == 2  # of both guidance scales, the first seed's files
    assert verify(monkeypatch, *arguments) == 0  # without the script its cells are those kept alone
    assert ": gh_accuracy of clip8 expected" not in capsys.readouterr().out


def test_a_changed_floor_is_found_though_what_was_kept_agrees(compared, copy, monkeypatch, capsys):
    """Row and clips changed alike, their checksums taken away: only the sounds tell."""
    lines = copy.read_text().splitlines()
    row = json.loads(lines[1])
    del row["check"]
    row["metrics"]["gh_ap"] += 0.25
    for part in ("low", "high"):
        row["estimates"]["gh_ap"][part] += 0.25
    copy.write_text("".join(f"{line}\n" for line in [lines[0], json.dumps(row), *lines[2:]]))
    clips = copy.with_name("clips.jsonl")
    entries = [json.loads(line) for line in clips.read_text().splitlines()]
    for entry in entries:
        del entry["check"]
    shifted = [e | {"gh_ap": e["gh_ap"] + 0.25} if e["model"] == "codec" else e for e in entries]
    clips.write_text("".join(f"{json.dumps(entry)}\n" for entry in shifted))
    data = ("--data", compared / "data", "--judges.greatest-hits")
    assert verify(monkeypatch, "--rows", copy, "--all") == 0
    assert verify(monkeypatch, "--rows", copy, "--all", *data) == 1
    printed = capsys.readouterr().out
    assert "vta codec, 0 steps, seed 0: gh_ap expected" in printed
    assert "difference -0.25 (the real sounds of the data): DIFFERS" in printed
    cell = ("--cell", "vta", "codec", 0, 0)
    assert verify(monkeypatch, "--rows", copy, *cell, "gh_ap") == 0
    assert verify(monkeypatch, "--rows", copy, *cell, "gh_ap", *data) == 1
    assert verify(monkeypatch, "--rows", copy, *cell, "gh_ap low", *data) == 1
    assert verify(monkeypatch, "--rows", copy, *cell, "frechet", *data) == 0


def test_an_exchanged_file_is_found(compared, copy, monkeypatch, capsys):
    path = next(copy.parent.glob("media/vta-student-1-g1.4-s0-clip8.wav"))
    write_audio(path, 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32), RATE)
    assert verify(monkeypatch, "--rows", copy, "--all", "--data", compared / "data") == 1
    printed = capsys.readouterr().out
    assert "vta student, 1 step, guidance 1.4, seed 0: kl of clip8 expected" in printed
    assert "student, 1 step, seed 0: kl of clip8" not in printed
    assert "hits of clip8 expected 2, found 0, difference -2 (vta-student-1-g1.4-s0-clip8.wav): DIFFERS" in printed
    write_audio(path, np.ones(RATE // 2, np.float32), RATE)
    assert verify(monkeypatch, "--rows", copy, "--all", "--data", compared / "data") == 2
    assert "has 8000 samples at 16000 Hz, which is not what was scored" in capsys.readouterr().err
