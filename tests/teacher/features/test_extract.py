"""Extraction end to end on small files: windows, skips with reasons, resuming, and what the dataset gives back."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from teacher.encoders.registry import ENCODERS, Encoders, EncoderSet, load_encoders
from teacher.features import store
from teacher.features.codec import load_codec
from teacher.features.config import ExtractConfig
from teacher.features.dataset import FeatureSet, batch_indices
from teacher.features.extract import extract
from teacher.features.resume import make_plan
from teacher.files.errors import FeatureError
from teacher.lists.manifest import Item, Split, write_manifest
from teacher.media import MediaError, write_audio, write_video
from teacher.media.read import FrameRequest
from teacher.network.mmaudio import MMAudio
from teacher.network.sequence import ConditionWidths
from teacher.network.variants import variant
from tests.teacher.tiny_weights import encode_clip

RATE = 16_000
CONFIG = ExtractConfig(duration_s=1.0, shard_size=3, workers=0)


def sound(duration_s: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(duration_s * RATE)) / RATE
    wave = np.sin(2 * np.pi * rng.uniform(200, 2000) * t) * np.exp(-5 * (t % 0.5)) + 0.01 * rng.standard_normal(len(t))
    return (0.3 * wave).astype(np.float32)


def pictures(duration_s: float, seed: int = 0) -> np.ndarray:
    count, rng = round(25 * duration_s), np.random.default_rng(seed)
    frames = np.full((count, 48, 48, 3), rng.integers(40, 120), np.uint8)
    for k in range(count):
        x = 4 + (k * 2 + seed) % 36
        frames[k, 20:28, x : x + 8] = (220, 40 + 10 * (seed % 10), 60)
    return frames


def video(folder: Path, name: str, duration_s: float, *, split: Split = "train", seed: int = 0, **words) -> Item:
    path = folder / f"{name}.mp4"
    write_video(path, pictures(duration_s, seed), 25.0, sound(duration_s, seed), RATE)
    return Item(id=name, path=path, caption=words.pop("caption", "a square moves"), split=split, **words)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def audio(folder: Path, name: str, wave: np.ndarray, *, split: Split = "train") -> Item:
    path = folder / f"{name}.wav"
    write_audio(path, wave, RATE)
    return Item(id=name, path=path, caption="", split=split)


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[Item]:
    """Usable files of every kind, and one of each fault."""
    folder = tmp_path_factory.mktemp("media")
    made = [video(folder, f"train{i}", 1.0, seed=i, caption=f"square number {i % 2}") for i in range(6)]
    made.append(video(folder, "long", 2.96, seed=7, events_s=(0.25, 1.0, 1.75, 2.5), label="square", group_id="film"))
    made.append(video(folder, "held", 0.92, split="val", seed=8))
    made.append(audio(folder, "song", sound(2.6, 9), split="test"))
    made.append(audio(folder, "short-song", sound(0.4, 10), split="test"))
    made.append(audio(folder, "mute", np.zeros(RATE, np.float32)))
    made.append(video(folder, "short", 0.72, seed=11))
    text = folder / "text.mp4"
    text.write_text("no video at all")
    made.append(Item(id="text", path=text, caption="x", split="train"))
    made.append(Item(id="gone", path=folder / "gone.mp4", caption="x", split="train"))
    return made


@pytest.fixture(scope="module")
def features(items, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "features"
    extract(items, out, CONFIG)
    return out


def test_every_window_and_every_skip_is_accounted_for(items, features):
    report = extract(items, features, CONFIG)  # finished: read back from features.json
    # long: two whole seconds and 0.96 >= 0.9; song: two and 0.6 < 0.64, so no third.
    assert report.counts == {"train": 6 + 3, "val": 1, "test": 2}
    reasons = dict(report.skipped)
    assert set(reasons) == {"short-song", "mute", "short", "text", "gone"}
    assert reasons["short-song"] == "too short: 0.40 s of audio, need 1 s"
    assert reasons["short"] == "too short: 0.72 s of video, need 1 s"
    assert reasons["mute"] == "silent"
    assert "not a media file" in reasons["text"]
    assert "cannot be read" in reasons["gone"]
    assert report.padded == 1  # held; the 40 ms that long lacks are within a codec's rounding
    info = json.loads((features / "features.json").read_text())
    assert {entry["id"] for entry in info["skipped"]} == set(reasons)
    assert info["counts"] == report.counts
    assert "left out: 5 (2 x too short" in str(report)


def test_video_without_sound_is_left_out_by_name(features, items, tmp_path):
    import av

    silent = tmp_path / "noaudio.mp4"
    with av.open(str(silent), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for frame in pictures(1.0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    item = Item(id="noaudio", path=silent, caption="x", split="train")
    report = extract([*items[:7], item], tmp_path / "out", CONFIG)
    assert report.skipped == [("noaudio", "no audio stream that can be decoded")]


def test_rows_belong_together(items, features):
    train = FeatureSet.open(features, "train")
    batch = train.batch([0, 7, 3])
    assert batch.latents.shape == (3, 32, 20)  # ceil(16000 / 512)
    assert batch.conditions.clip.shape == (3, 8, 1024)
    assert batch.conditions.sync.shape == (3, 16, 768)
    assert batch.conditions.text.dtype == batch.latents.dtype == torch.float32
    assert batch.conditions.has_clip.tolist() == [True, True, True]
    long = [record for record in train.records if record.item_id == "long"]
    assert [(r.id, r.start_s, r.events_s) for r in long] == [
        ("long@0s", 0.0, (0.25,)),
        ("long@1s", 1.0, (0.0, 0.75)),
        ("long@2s", 2.0, (0.5,)),
    ]
    assert {r.group_id for r in long} == {"film"}  # windows of one file
    assert {r.group_id for r in train.records if r.item_id != "long"} == {""}
    assert train.info["duration_s"] == 1.0
    words = load_encoders("embedded").text([train.records[3].caption])[0]
    torch.testing.assert_close(batch.conditions.text[2], words, atol=1e-3, rtol=1e-2)  # stored as bfloat16
    song = FeatureSet.open(features, "test").batch([0, 1]).conditions
    assert not song.has_clip.any()
    assert not song.has_sync.any()
    assert not song.has_text.any()
    assert not song.clip.any()


def test_sampling_sees_what_training_saw(features):
    train = FeatureSet.open(features, "train")
    for row in (2, 7):
        record = train.records[row]
        clip, sync = encode_clip(
            load_encoders("embedded"), Path(record.path), start_s=record.start_s, duration_s=record.duration_s
        )
        conditions = train.batch([row]).conditions
        assert torch.equal(clip.bfloat16().float(), conditions.clip[0])
        assert torch.equal(sync.bfloat16().float(), conditions.sync[0])


def test_latents_are_those_of_the_peak_normalised_sound(features):
    train, codec = FeatureSet.open(features, "train"), load_codec(features)
    wave = codec.decode(train.batch([0]).latents)
    assert wave.shape == (1, 32 * 512)
    assert 0.4 < wave.abs().max() <= 1.0  # the file's own peak is 0.3
    latents = train.batch(range(len(train))).latents
    assert latents.mean().abs() < 0.05
    assert abs(latents.std() - 1) < 0.05


def test_an_interrupted_run_goes_on_and_equals_an_uninterrupted_one(items, features, tmp_path):
    seen = Counter()

    def stop(stage, done, total):
        if stage == "extract" and done == 7:
            raise KeyboardInterrupt

    out = tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        extract(items, out, CONFIG, progress=stop)
    kept = sorted(path.name for path in (out / "shards").iterdir())
    assert kept == [f"train-{k:05d}.safetensors" for k in range(2)]
    times = {name: (out / "shards" / name).stat().st_mtime_ns for name in kept}
    with pytest.raises(FeatureError, match="extraction is unfinished: run it again"):
        FeatureSet.open(out, "train")
    extract(items, out, CONFIG, progress=lambda stage, done, total: seen.update([stage]))
    assert seen["fit codec"] == 0
    assert times == {name: (out / "shards" / name).stat().st_mtime_ns for name in kept}
    assert contents(out) == contents(features)


def test_workers_make_the_same_features(items, features, tmp_path):
    extract(items, tmp_path / "features", replace(CONFIG, workers=1))
    assert contents(tmp_path / "features") == contents(features)


def test_other_settings_or_items_are_refused_until_overwritten(items, tmp_path):
    out, few = tmp_path / "features", items[:7]
    extract(few, out, CONFIG)
    with pytest.raises(FeatureError, match=r"made from a different config; choose another --out, or .* --overwrite"):
        extract(few, out, replace(CONFIG, peak_normalise=False))
    with pytest.raises(FeatureError, match="different items"):
        extract(few[1:], out, CONFIG)
    report = extract(few[1:], out, CONFIG, overwrite=True)
    assert report.counts["train"] == len(FeatureSet.open(out, "train")) == 8


def test_a_folder_with_other_files_is_not_touched(items, tmp_path):
    (tmp_path / "holiday.jpg").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(FeatureError, match="holds other files and no features; choose another --out"):
            extract(items[:7], tmp_path, CONFIG, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_captions_of_one_sound_share_a_group_and_a_group_belongs_to_what_a_rerun_must_match(tmp_path):
    path = tmp_path / "song.wav"
    write_audio(path, sound(4.0), RATE)
    items = [Item(id=f"song#{k}", path=path, caption=f"words {k}", split="train", group_id="song") for k in range(2)]
    extract(items, tmp_path / "features", CONFIG)
    records = FeatureSet.open(tmp_path / "features", "train").records
    assert sorted((r.item_id, r.caption) for r in records) == [(f"song#{k}", f"words {k}") for k in (0,) * 4 + (1,) * 4]
    assert {r.group_id for r in records} == {"song"}
    with pytest.raises(FeatureError, match="was made from a different items"):
        extract([replace(items[0], group_id="other"), items[1]], tmp_path / "features", CONFIG)


def test_items_without_groups_match_features_made_before_there_were_groups(items):
    before = hashlib.sha256()
    alone = [item for item in items if not item.group_id]
    for item in alone:
        row = (item.id, str(item.path), item.caption, item.label, item.split, item.events_s)
        before.update(json.dumps(row).encode())
    assert make_plan(alone, CONFIG, encoders={}, codec=None, stamps=False)["items"] == before.hexdigest()


def test_nothing_usable_is_one_line(items, tmp_path):
    with pytest.raises(FeatureError, match=r"^no item of the train split is usable: .*1 x too short") as caught:
        extract([item for item in items if item.id in ("short", "text", "gone")], tmp_path / "a", CONFIG)
    assert "\n" not in str(caught.value)
    with pytest.raises(FeatureError, match=r"needs at least 200 latent frames.*left out: 1 x silent"):
        extract([items[0], next(item for item in items if item.id == "mute")], tmp_path / "b", CONFIG)
    with pytest.raises(FeatureError, match="repeated: train0"):
        extract([items[0], items[0]], tmp_path / "c", CONFIG)


def test_damaged_features_are_refused(items, tmp_path):
    out = tmp_path / "features"
    extract(items[:7], out, CONFIG)
    with pytest.raises(FeatureError, match=r"no examples in split 'val' \(found train 9, val 0, test 0\)"):
        FeatureSet.open(out, "val")
    path = store.shard_path(out, "train", 1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(FeatureError, match=r"train-00001\.safetensors has \d+ bytes instead of .*extract again"):
        FeatureSet.open(out, "train")
    path.write_bytes(whole)
    path.rename(path.with_suffix(".away"))
    with pytest.raises(FeatureError, match=r"train-00001\.safetensors is missing; .* extract again"):
        FeatureSet.open(out, "train")
    with pytest.raises(FeatureError, match=r"no features\.json; extract first"):
        FeatureSet.open(tmp_path / "nowhere", "train")


def test_encode_clip_refuses_what_is_too_short(items):
    long = next(item for item in items if item.id == "long")
    encoders = load_encoders("embedded")
    with pytest.raises(MediaError, match=r"too short: 0\.46 s of video, need 1 s"):
        encode_clip(encoders, long.path, start_s=2.5, duration_s=1.0)
    song = next(item for item in items if item.id == "song")
    with pytest.raises(MediaError, match="has no picture"):
        encode_clip(encoders, song.path, start_s=0.0, duration_s=1.0)


def test_config_names_field_rule_and_value():
    with pytest.raises(ValueError, match=r"duration_s must be at least 0\.64 s, got 0\.5"):
        ExtractConfig(duration_s=0.5)
    with pytest.raises(ValueError, match=r"codec must be one of embedded, .*mmaudio_44k, got 'mp3'"):
        ExtractConfig(codec="mp3")
    with pytest.raises(ValueError, match="encoders must be one of embedded, mmaudio, got 'clip'"):
        ExtractConfig(encoders="clip")


def test_batches_are_permutations_and_a_function_of_seed_and_step():
    rows = torch.cat([batch_indices(10, 4, seed=3, step=step) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert torch.equal(batch_indices(10, 4, seed=3, step=2), rows[8:12])
    assert not torch.equal(batch_indices(10, 4, seed=4, step=0), rows[:4])
    wide = batch_indices(3, 8, seed=0, step=1)
    assert wide.shape == (8,)
    assert max(Counter(wide.tolist()).values()) <= 4  # rows 8 ... 15 of the endless list touch four epochs
    with pytest.raises(ValueError, match="num_items and batch_size must be at least 1"):
        batch_indices(0, 4, seed=0, step=0)


def test_command_line(items, tmp_path):
    write_manifest(items, tmp_path / "manifest.jsonl")
    command = [sys.executable, "-m", "scripts.extract", "--data", str(tmp_path / "manifest.jsonl")]
    command += ["--out", str(tmp_path / "features"), "--duration-s", "1.0", "--workers", "0"]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "examples: train 9, val 1, test 2" in done.stdout
    assert "mute: silent" in done.stdout
    refused = subprocess.run([*command, "--duration-s", "0.8"], cwd=root, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "different config" in refused.stderr
    assert "Traceback" not in refused.stderr


@dataclass(frozen=True)
class Brightness:
    """An image or synchronisation encoder of another width: mean colour of the frame."""

    name: str
    request: FrameRequest
    slots: bool
    width: int = 3

    def __call__(self, frames):
        mean = torch.as_tensor(frames).float().mean((2, 3)) / 255
        count = 8 * ((len(mean) - 16) // 8 + 1) if self.slots else len(mean)
        return mean[torch.linspace(0, len(mean) - 1, count).long()]


@dataclass(frozen=True)
class Letters:
    """A text encoder of another width and length: one of 32 letters at each of 9 positions."""

    name: str = "letters-1"
    width: int = 32
    positions: int = 9
    shared_positions: int = 0

    def __call__(self, texts):
        made = torch.zeros(len(texts), 9, 32)
        for row, text in zip(made, texts, strict=True):
            for k, letter in enumerate(text[:9]):
                row[k, ord(letter) % 32] = 1
        return made


def test_another_set_of_encoders_is_one_entry_of_the_table(items, tmp_path, monkeypatch):
    """Extraction, data set and a fresh network follow its widths."""
    requests = tuple(FrameRequest(fps=fps, height=8, width=8, fit="stretch") for fps in (8, 25))
    image, sync = (Brightness(f"bright-{fps}", one, fps == 25) for fps, one in zip((8, 25), requests, strict=True))
    made = Encoders(image=image, sync=sync, text=Letters())
    monkeypatch.setitem(ENCODERS, "bright", EncoderSet(requests=requests, load=lambda folder, device: made))
    extract(items[:7], tmp_path, replace(CONFIG, encoders="bright"))
    assert store.folder_widths(tmp_path) == made.widths == ConditionWidths(image=3, sync=3, text=32, text_tokens=9)
    batch = FeatureSet.open(tmp_path, "train").batch([0, 1])
    net = MMAudio(variant("debug_16k").with_widths(made.widths))
    assert net(batch.latents, torch.full((2,), 0.5), batch.conditions).shape == batch.latents.shape
