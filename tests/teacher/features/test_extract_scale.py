"""Extraction in several processes, killed at any point, with a posterior codec and with heavy encoders."""

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from teacher.audio.codec import Posterior
from teacher.audio.registry import CODECS
from teacher.encoders.registry import Encoders, encoder_set
from teacher.features import extract as extract_module
from teacher.features import windows
from teacher.features.codec import load_codec
from teacher.features.config import ExtractConfig
from teacher.features.dataset import FeatureSet, JointSet
from teacher.features.extract import extract
from teacher.features.windows import FileWindows
from teacher.files.errors import FeatureError
from teacher.lists.manifest import Item, Split, write_manifest
from teacher.media import write_audio, write_video
from teacher.network.sequence import SEQUENCE_16K, SequenceConfig

RATE = 16_000
CONFIG = ExtractConfig(duration_s=1.0, shard_size=2, workers=0, codec_fit_clips=8)
ROOT = Path(__file__).parents[3]


def sound(folder: Path, name: str, duration_s: float = 1.0, *, seed: int = 0, split: Split = "train") -> Item:
    rng = np.random.default_rng(seed)
    path = folder / f"{name}.wav"
    write_audio(path, (0.3 * rng.standard_normal(round(duration_s * RATE))).astype(np.float32), RATE)
    return Item(id=name, path=path, caption=f"noise number {seed % 5}", split=split)


def film(folder: Path, name: str, duration_s: float = 1.0, *, seed: int = 0, split: Split = "train") -> Item:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (round(25 * duration_s), 32, 32, 3), np.uint8)
    wave = (0.3 * rng.standard_normal(round(duration_s * RATE))).astype(np.float32)
    write_video(folder / f"{name}.mp4", frames, 25.0, wave, RATE)
    return Item(id=name, path=folder / f"{name}.mp4", caption="snow", split=split)


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[Item]:
    folder = tmp_path_factory.mktemp("media")
    made = [sound(folder, f"s{i}", seed=i) for i in range(9)]
    made += [film(folder, f"v{i}", seed=20 + i) for i in range(3)]
    made += [sound(folder, "t0", 2.6, seed=30, split="test"), film(folder, "t1", seed=31, split="test")]
    made.append(Item(id="gone", path=folder / "gone.wav", caption="x", split="train"))
    # Three captions of one sound.
    made += [replace(made[0], id=f"again#{k}", caption=f"caption {k}") for k in range(3)]
    return made


@pytest.fixture(scope="module")
def whole(items, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "features"
    extract(items, out, CONFIG)
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder below a folder, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")
    }


def child(items: list[Item], out: Path, part: tuple[int, int], stop_after: int | None, patience_s: float) -> None:
    """Extraction in a process of its own; killed, not stopped, after some calls of the progress function."""
    torch.set_num_threads(1)
    calls = 0

    def count(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        extract(items, out, CONFIG, part=part, progress=count, patience_s=patience_s)
    except FeatureError as error:
        out.with_name(f"error-{part[0]}.txt").write_text(str(error))
        sys.exit(3)


@pytest.fixture(scope="module")
def processes():
    """Starts extractions as processes that were never part of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.teacher.features.test_extract_scale"])

    def start(items, out, part=(0, 1), stop_after=None, patience_s=60.0):
        process = context.Process(target=child, args=(items, out, part, stop_after, patience_s))
        process.start()
        return process

    return start


def test_killed_ten_times_it_ends_with_the_same_bytes(items, whole, processes, tmp_path):
    out, rng, killed = tmp_path / "features", random.Random(1), 0
    for attempt in range(10):
        # Half of them at a random call of the progress function, half at a random time, mostly while writing.
        by_time = attempt % 2
        process = processes(items, out, stop_after=None if by_time else rng.randint(1, 12))
        if by_time:
            time.sleep(rng.uniform(0.005, 0.06))
            process.kill()
        process.join(60)
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 5
    process = processes(items, out)
    process.join(60)
    assert process.exitcode == 0
    assert contents(out) == whole


class PowerCut(BaseException):
    """Nothing in the code may catch it."""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_cut_at_every_rename_leaves_a_folder_that_goes_on(items, tmp_path, monkeypatch, when):
    """Every file appears by a rename. Each run is cut at the next one, leaving its temporary file, until one ends."""
    few, config, true_os, done = [*items[:7], items[9]], replace(CONFIG, shard_size=4), os.replace, 0
    extract(few, tmp_path / "whole", config)
    cut_at = 2 if when == "before" else 1  # the first rename of a run must happen for the next one to be further

    true_unlink, without_power = Path.unlink, False

    def cutting(source, target):
        nonlocal done, without_power
        done += 1
        without_power = done == cut_at
        if without_power and when == "before":
            raise PowerCut
        true_os(source, target)
        if without_power:
            raise PowerCut

    def unlink(path, missing_ok=False):
        if not without_power:
            true_unlink(path, missing_ok=missing_ok)

    cuts = 0
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cutting)
        patch.setattr(os, "replace", cutting)
        patch.setattr(Path, "unlink", unlink)
        while True:
            done, without_power = 0, False
            try:
                extract(few, tmp_path / "cut", config)
                break
            except PowerCut:
                cuts += 1
                assert cuts < 20
    # plan (in the first run alone, so never the one cut before), probe, codec, two texts, two shards, digests,
    # features.json
    assert cuts == (8 if when == "before" else 9)
    (tmp_path / "cut" / "features.json").unlink()
    extract(few, tmp_path / "cut", config)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_processes_make_the_same_bytes_as_one_and_a_rerun_may_have_another_number(items, whole, processes, tmp_path):
    two = [processes(items, tmp_path / "two", (rank, 2)) for rank in range(2)]
    for process in two:
        process.join(60)
        assert process.exitcode == 0
    assert contents(tmp_path / "two") == whole
    three = [processes(items, tmp_path / "mixed", (rank, 3), 9 if rank == 0 else None, 2.0) for rank in range(3)]
    for process in three:
        process.join(60)
    assert [process.exitcode for process in three] == [-signal.SIGKILL, 3, 3]  # the lead died, the others noticed
    last = processes(items, tmp_path / "mixed")
    last.join(60)
    assert last.exitcode == 0
    assert contents(tmp_path / "mixed") == whole


def test_a_lost_process_ends_the_others_with_its_name(items, processes, tmp_path):
    lead = processes(items, tmp_path / "features", (0, 2))
    other = processes(items, tmp_path / "features", (1, 2), 1)
    other.join(60)
    lead.join(60)
    assert (lead.exitcode, other.exitcode) == (3, -signal.SIGKILL)
    said = (tmp_path / "error-0.txt").read_text()
    assert "process 1 of 2 gives no sign of life while process 0 waits for all shards and texts" in said
    assert "run the same command again" in said


@pytest.mark.slow
def test_two_launched_commands_share_the_work(items, tmp_path):
    write_manifest(items, tmp_path / "manifest.jsonl")
    command = [sys.executable, "-m", "scripts.extract", "--data", str(tmp_path / "manifest.jsonl"), "--duration-s", "1"]
    command += ["--workers", "0", "--shard-size", "2", "--out"]
    subprocess.run([*command, str(tmp_path / "one")], cwd=ROOT, check=True, capture_output=True)
    launched = [
        subprocess.Popen(
            [*command, str(tmp_path / "two")],
            cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in launched]
    assert [process.returncode for process in launched] == [0, 0]
    assert "examples: train 15, val 0, test 3" in said[0]
    assert said[1] == ""
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_captions_of_one_sound_share_its_latents(items, tmp_path):
    config = replace(CONFIG, shard_size=16)
    extract(items, tmp_path, config)
    train = FeatureSet.open(tmp_path, "train")
    ids = [record.id for record in train.records]
    rows = [ids.index(name) for name in ("s0", "again#0", "again#1", "again#2")]
    batch = train.batch(rows)
    assert all(torch.equal(batch.latents[0], other) for other in batch.latents)
    assert len(set(train.rows.sound_index[rows].tolist())) == 1
    captions = [train.records[row].caption for row in rows]
    assert captions == ["noise number 0", "caption 0", "caption 1", "caption 2"]
    assert len({tuple(text[:, 0].tolist()) for text in batch.conditions.text}) == 4
    assert len(train.rows.shards[0].file.metadata["skipped"]) == 0


# A posterior and heavy encoders, in small: what MMAudio's own parts look like from here.


@dataclass(frozen=True, kw_only=True)
class Wide:
    """Mean and std of a latent whose channels have offsets 0, 1, 2, 3 and whose last frames follow the sound."""

    latent_mean: torch.Tensor
    latent_std: torch.Tensor
    sequence: SequenceConfig = SEQUENCE_16K
    latent_channels: int = 4

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr((self.latent_mean.tolist(), self.latent_std.tolist())).encode()).hexdigest()

    def posterior(self, wave: torch.Tensor) -> Posterior:
        step = self.sequence.samples_per_latent
        padded = torch.nn.functional.pad(wave, (0, -wave.shape[1] % step)).unflatten(1, (-1, step))
        mean = padded[..., :4] * torch.arange(1.0, 5.0) + torch.arange(4.0)
        return Posterior(mean, padded[..., :4].abs() + 0.1)

    def with_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> "Wide":
        return replace(self, latent_mean=mean, latent_std=std)

    @property
    def facts(self) -> dict[str, float]:
        return {}

    def save(self, path: Path) -> None:
        temporary = path.with_name(".codec.tmp")
        save_file({"latent_mean": self.latent_mean, "latent_std": self.latent_std}, temporary)
        os.replace(temporary, path)


@dataclass(frozen=True)
class Looks:
    name: str
    width: int
    slots: int
    """Features made of every `frames` of the request; counted by the caller."""

    def __call__(self, frames: np.ndarray) -> torch.Tensor:
        assert frames.dtype == np.uint8
        request = encoder_set("mmaudio").requests[0 if self.width == 1024 else 1]
        assert frames.shape[1:] == (3, request.height, request.width)
        mean = torch.as_tensor(frames).float().mean((1, 2, 3)) / 255
        return mean[: self.slots, None].repeat(1, self.width)


@dataclass(frozen=True)
class Reads:
    name: str = "reads"
    width: int = 1024
    positions: int = 77
    shared_positions: int = 1

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        features = torch.zeros(len(texts), 77, 1024)
        features[:, 0] = 0.5
        for row, text in zip(features, texts, strict=True):
            row[1:, :] = (len(text) % 13) / 16
        return features


def raw_latents(features: FeatureSet, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior mean and std of rows as stored, before anything is drawn or normalised."""
    gathered = features.rows.blank(features.has_video[rows].numpy())
    features.rows.fill(rows, np.arange(len(rows)), gathered)
    return torch.from_numpy(gathered.mean), torch.from_numpy(gathered.std)


@pytest.fixture
def heavy(monkeypatch):
    """The names "mmaudio" and "mmaudio_16k" stand for the classes above."""

    def encoders(name, weights_dir=None, device="cpu"):
        assert (name, weights_dir, device) == ("mmaudio", Path("w"), "cpu")
        return Encoders(image=Looks("i", 1024, 8), sync=Looks("s", 768, 16), text=Reads(), in_worker=False)

    def codec(name, weights_dir, device="cpu"):
        assert (name, weights_dir, device) == ("mmaudio_16k", Path("w"), "cpu")
        return Wide(latent_mean=torch.zeros(4), latent_std=torch.ones(4))

    monkeypatch.setattr(extract_module, "load_encoders", encoders)
    monkeypatch.setitem(CODECS, "mmaudio_16k", replace(CODECS["mmaudio_16k"], load=partial(codec, "mmaudio_16k")))
    return replace(CONFIG, codec="mmaudio_16k", encoders="mmaudio", weights_dir=Path("w"), device="cpu")


def test_posterior_and_frames_encoded_here(items, heavy, tmp_path):
    report = extract(items, tmp_path, heavy)
    assert report.counts == {"train": 15, "val": 0, "test": 3}
    train = FeatureSet.open(tmp_path, "train")
    mean, std = raw_latents(train, torch.arange(len(train)))
    assert std is not None
    video = train.has_video
    assert int(video.sum()) == 3
    # Statistics are those of training rows with picture: of float32 means, so up to their rounding to 8 bits.
    values = mean[video].flatten(0, 1)
    torch.testing.assert_close(train.latent_mean, values.mean(0), atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(train.latent_std, values.std(0), atol=5e-3, rtol=1e-3)
    latents = train.batch(torch.nonzero(video).flatten()).latents
    assert latents.mean().abs() < 1e-2
    assert abs(float(latents.std()) - 1) < 1e-2
    generator = torch.Generator().manual_seed(0)
    drawn = train.batch([0, 1], generator=generator).latents
    plain = train.batch([0, 1]).latents
    e = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn - plain, std[:2] * e / train.latent_std, atol=1e-5, rtol=1e-4)
    row = int(torch.nonzero(video)[0])
    clip = train.batch([row]).conditions.clip
    assert clip.shape == (1, 8, 1024)
    assert 0.3 < float(clip.mean()) < 0.7  # the mean of uniform noise
    text = train.batch([row]).conditions.text
    assert float(text[0, 0, 0]) == 0.5
    info = json.loads((tmp_path / "features.json").read_text())
    assert "weights_dir" not in info["config"]
    assert info["codec"]["latent_space"] != info["codec"]["digest"]


def test_sets_of_one_codec_can_be_joined_whatever_their_statistics(items, heavy, tmp_path):
    extract([item for item in items if item.id.startswith("v")], tmp_path / "av", heavy)
    extract([item for item in items if item.id.startswith("s")], tmp_path / "at", heavy)
    av, at = (FeatureSet.open(tmp_path / name, "train") for name in ("av", "at"))
    assert not torch.equal(av.latent_mean, at.latent_mean)
    joint = JointSet([(av, 3), (at, 1)])
    assert len(joint) == 3 * 3 + 9
    expected = (raw_latents(at, torch.tensor([4]))[0] - av.latent_mean) / av.latent_std
    torch.testing.assert_close(joint.batch([9 + 4]).latents, expected)


def test_a_heavy_extraction_goes_on_with_the_same_bytes(items, heavy, tmp_path):
    extract(items, tmp_path / "whole", heavy)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "extract" and done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(items, tmp_path / "cut", heavy, progress=stop)
    extract(items, tmp_path / "cut", heavy)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_published_codec_needs_its_folder(items, tmp_path):
    with pytest.raises(
        FeatureError, match="codec 'mmaudio_16k' needs a folder of weights; give one with --weights-dir"
    ):
        extract(items, tmp_path / "a", replace(CONFIG, codec="mmaudio_16k"))
    with pytest.raises(ValueError, match="encoders 'mmaudio' need a weights folder"):
        extract(items, tmp_path / "a", replace(CONFIG, encoders="mmaudio"))


def test_a_codec_can_be_taken_from_another_folder(items, tmp_path):
    extract(items[:9], tmp_path / "first", CONFIG)
    alone, borrowed = tmp_path / "alone", tmp_path / "borrowed"
    films = [item for item in items if item.id.startswith("v")]
    extract([*films, *items[4:9]], alone, CONFIG)
    extract(films, borrowed, replace(CONFIG, codec_from=tmp_path / "first"))
    assert load_codec(borrowed).digest == load_codec(tmp_path / "first").digest != load_codec(alone).digest
    first = FeatureSet.open(tmp_path / "first", "train")
    with pytest.raises(FeatureError, match=r"differ in codec; extract the second .* --codec-from the first"):
        JointSet([(first, 1), (FeatureSet.open(alone, "train"), 1)])
    assert len(JointSet([(first, 1), (FeatureSet.open(borrowed, "train"), 2)])) == 9 + 2 * 3
    with pytest.raises(FeatureError, match="was made with --codec embedded, not embedded_44k"):
        extract(films, tmp_path / "x", replace(CONFIG, codec="embedded_44k", codec_from=tmp_path / "first"))


@pytest.mark.parametrize(
    ("duration_s", "starts_s"),
    [
        (0.97, None),  # shorter than a window
        (1.0, (0.0,)),
        (1.9, (0.0,)),  # under two windows: the first one
        (2.0, (0.0, 1.0)),
        (2.6, (0.0, 1.6)),
        (7.4, (0.0, 1.6, 3.2, 4.8, 6.4)),  # step (7.4 - 1) / 4
    ],
)
def test_spread_windows_are_whole_and_reach_from_start_to_end(tmp_path, duration_s, starts_s):
    item = sound(tmp_path, "long", duration_s)
    reader = replace(CONFIG, max_windows_per_item=5, spread_windows=True).reader()
    found = reader.find(item.path)
    if starts_s is None:
        assert found == "too short: 0.97 s of audio, need 1 s"
        return
    assert isinstance(found, FileWindows)
    assert found.starts_s == pytest.approx(starts_s)
    assert all(b - a >= 1.0 for a, b in zip(found.starts_s, found.starts_s[1:], strict=False))
    assert found.starts_s[-1] + 1.0 <= duration_s + 1e-9


def test_films_may_give_fewer_windows_than_sounds(tmp_path):
    made = film(tmp_path, "film", 3.0)
    reader = replace(CONFIG, max_windows_video=1, max_windows_per_item=2).reader()
    found = reader.find(made.path)
    assert isinstance(found, FileWindows)
    assert [(window.id, window.start_s) for window in found.of(made)] == [("film", 0.0)]
    assert reader.find(sound(tmp_path, "sound", 3.0).path).starts_s == (0.0, 1.0)
    with pytest.raises(ValueError, match="max_windows_video must be at least 1, got 0"):
        replace(CONFIG, max_windows_video=0)


def test_a_rerun_does_not_probe_files_again(items, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "BLOCK", 4)
    probed: list[Path] = []
    true_probe = windows.probe
    monkeypatch.setattr(windows, "probe", lambda path: probed.append(path) or true_probe(path))

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "probe" and done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(items, tmp_path / "a", CONFIG, progress=stop)
    first = len(probed)

    def leave(stage: str, done: int, total: int) -> None:
        if stage == "fit codec":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(items, tmp_path / "a", CONFIG, progress=leave)
    # Blocks 0 and 1 stay; of the other ten items, two in one block are of one file.
    assert (first, len(probed)) == (10, 10 + 9)


def test_a_film_is_probed_once_in_an_extraction(items, tmp_path, monkeypatch):
    probed: Counter[Path] = Counter()
    true_probe = windows.probe
    monkeypatch.setattr(windows, "probe", lambda path: probed.update([path]) or true_probe(path))
    extract(items, tmp_path / "a", replace(CONFIG, workers=0))
    assert set(probed) == {item.path for item in items}
    assert set(probed.values()) == {1}
