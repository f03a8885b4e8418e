"""Extraction and its folders under damage: two at once, cut and flipped files, files that kill, odd text, moves."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from teacher.audio.registry import CODECS
from teacher.features import resume, store
from teacher.features import workers as pool
from teacher.features.codec import load_codec
from teacher.features.config import ExtractConfig
from teacher.features.dataset import FeatureSet
from teacher.features.extract import extract
from teacher.features.workers import WorkerPool
from teacher.files import FolderLock, LockedError, Moved
from teacher.files.errors import FeatureError
from teacher.files.tensor_file import CHECKS, TensorFile
from teacher.lists.manifest import Item, read_manifest
from teacher.media import write_audio

RATE = 16_000
CONFIG = ExtractConfig(duration_s=1.0, shard_size=3, workers=0, codec_fit_clips=8)
ROOT = Path(__file__).parents[3]


def sound(path: Path, seed: int = 0, duration_s: float = 1.0) -> Path:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, (0.3 * rng.standard_normal(round(duration_s * RATE))).astype(np.float32), RATE)
    return path


def sounds(folder: Path, count: int = 9) -> list[Item]:
    return [
        Item(id=f"s{k}", path=sound(folder / f"s{k}.wav", k), caption=f"noise {k % 4}", split="train")
        for k in range(count)
    ]


@pytest.fixture(scope="module")
def items(tmp_path_factory) -> list[Item]:
    return sounds(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def whole(items, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "features"
    extract(items, out, CONFIG)
    return out


@pytest.fixture
def features(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "features")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, at: int = -1, bit: int = 2) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def place(path: Path, name: str) -> int:
    return TensorFile.open(path).entries[name].begin + 5


def test_a_shard_that_appears_meanwhile_shifts_no_results(items, whole, tmp_path):
    """As when another process writes to the folder: the rows after it held other clips' latents."""
    out = tmp_path / "features"

    def other(stage: str, done: int, total: int) -> None:
        shard = store.shard_path(out, "train", 1)
        if stage == "extract" and done == 1 and not shard.exists():
            shard.parent.mkdir(exist_ok=True)
            shutil.copy(store.shard_path(whole, "train", 1), shard)

    extract(items, out, CONFIG, progress=other)
    assert contents(out) == contents(whole)


def test_results_of_other_windows_are_refused(items, tmp_path, monkeypatch):
    ordered = WorkerPool.ordered
    monkeypatch.setattr(WorkerPool, "ordered", lambda *args, **kinds: reversed(list(ordered(*args, **kinds))))
    with pytest.raises(RuntimeError, match=r"asked for the windows of .*, got those of"):
        extract(items, tmp_path / "features", CONFIG)


def test_a_second_extraction_into_a_folder_is_refused_and_touches_nothing(items, features):
    store.shard_path(features, "train", 0).unlink()
    with FolderLock(features):
        before = contents(features)
        for overwrite in (False, True):
            with pytest.raises(
                LockedError, match=r"the feature folder is being written by process \d+ on .*"
            ) as caught:
                extract(items, features, CONFIG, overwrite=overwrite)
            assert "\n" not in str(caught.value)
        assert contents(features) == before
    (features / ".lock").write_text('{"host": "left by a kill", "pid": 1}')
    extract(items, features, CONFIG)
    assert not (features / ".lock").exists()


def test_leftovers_of_killed_processes_go_and_other_files_stay(items, features, whole):
    names = [".train-00001.safetensors.0123456789ab~.safetensors", "shards/.train-00001.4711.safetensors"]
    for name in names:
        (features / name).write_bytes(b"half")
    (features / "shards" / ".mine").write_text("a person's")
    (features / "features.json").unlink()
    extract(items, features, CONFIG)
    assert (features / "shards" / ".mine").is_file()
    (features / "shards" / ".mine").unlink()
    assert contents(features) == contents(whole)


FILES = ["shards/train-00001.safetensors", "texts/00000.safetensors", "plan/00000.json", "codec.safetensors"]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "gone"])
@pytest.mark.parametrize("name", [*FILES, "features.json", "digests.json"])
def test_what_is_damaged_is_made_again_alone(items, whole, features, name, damage, finished):
    path = features / name
    if not finished and name != "features.json":
        (features / "features.json").unlink()
    if damage == "flipped":
        flip(path, -20 if path.suffix == ".safetensors" else path.read_bytes().rindex(b"0"))
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:5000][:-30] if damage == "cut" else b"")
    before = {one: one.stat().st_ino for one in features.rglob("*") if one.is_file()}
    report = extract(items, features, CONFIG)
    assert contents(features) == contents(whole)
    kept = {one for one, inode in before.items() if one.is_file() and one.stat().st_ino == inode}
    others = {features / one for one in (*FILES, "shards/train-00000.safetensors", "plan.json")} - {path}
    assert others <= kept
    if damage != "gone" and name in FILES:
        assert [line for line in report.made_again if line.startswith(name)] == [f"{name}: damaged"]
        assert f"made again: {len(report.made_again)} of an earlier run ({name}: damaged" in str(report)
    assert extract(items, features, CONFIG).made_again == []


def test_a_damaged_plan_is_written_again_where_the_rest_says_what_it_was(items, features, whole, tmp_path):
    for finished in (True, False):
        (features / "plan.json").write_bytes(b"")
        if not finished:
            (features / "features.json").unlink()
        with pytest.raises(FeatureError, match=r"plan\.json is damaged.* start afresh with --overwrite"):
            extract(items[1:], features, CONFIG)
        extract(items, features, CONFIG)
        assert contents(features) == contents(whole)
    (features / "plan.json").unlink()
    extract(items, features, CONFIG)
    assert contents(features) == contents(whole)
    (features / "plan.json").write_bytes(b"")
    extract(items[1:], features, CONFIG, overwrite=True)


def test_a_codec_that_is_not_made_again_bit_for_bit_is_not_put_beside_the_latents(items, features, monkeypatch):
    """Another processor may fit another one in the last bit."""
    (features / "codec.safetensors").unlink()
    entry = CODECS["embedded"]
    quieter = replace(entry, fit=lambda waves: entry.fit([wave * 0.9 for wave in waves]))
    monkeypatch.setitem(CODECS, "embedded", quieter)
    with pytest.raises(FeatureError, match=r"was made with another codec than .*codec\.safetensors; restore that file"):
        extract(items, features, CONFIG)


# What is flipped


@pytest.mark.parametrize("digests", [True, False], ids=["whole files", "rows"])
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("shards/train-00001.safetensors", "mean"),
        ("shards/train-00001.safetensors", f"mean{CHECKS}"),
        ("shards/train-00001.safetensors", "sound_index"),
        ("shards/train-00001.safetensors", "records"),
        ("texts/00000.safetensors", "text"),
        ("texts/00000.safetensors", "captions"),
        ("codec.safetensors", "basis"),
    ],
)
def test_a_flipped_bit_is_noticed_where_it_is_read(features, name, tensor, digests):
    if not digests:
        (features / "digests.json").unlink()
    path = features / name
    flip(path, _place(path, tensor))
    with pytest.raises(ValueError, match=rf"{Path(name).name}.*damaged") as caught:
        use(features)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_features_json_is_noticed(features):
    path = features / "features.json"
    flip(path, path.read_bytes().rindex(b"0"))
    with pytest.raises(FeatureError, match=r"features\.json is damaged: its SHA-256"):
        use(features)


def use(features: Path) -> None:
    """Read everything as training and comparing do."""
    opened = FeatureSet.open(features, "train")
    opened.batch(range(len(opened)))
    assert all(record.id for record in opened.records)
    load_codec(features)


def _place(path: Path, tensor: str) -> int:
    head = path.read_bytes()
    length = int.from_bytes(head[:8], "little")
    return 8 + length + json.loads(head[8 : 8 + length])[tensor]["data_offsets"][0] + 5


def test_a_damaged_row_names_its_clip_and_the_others_still_come(features):
    (features / "digests.json").unlink()
    path = store.shard_path(features, "train", 1)
    flip(path, place(path, "mean"))
    opened = FeatureSet.open(features, "train")
    opened.batch([0, 1, 2, 4, 5])
    with pytest.raises(FeatureError, match=r"train-00001\.safetensors: mean of clip s3 is damaged; .*extract again"):
        opened.batch([2, 3])
    with pytest.raises(FeatureError, match=r"train-00001\.safetensors: row 0 of mean is damaged"):
        opened.verify()


def test_a_row_is_compared_once_in_a_process(features, monkeypatch):
    opened = FeatureSet.open(features, "train")
    opened.batch(range(9))
    monkeypatch.setattr("teacher.files.tensor_file.zlib.crc32", lambda *_: pytest.fail("was compared"))
    opened.batch(range(9))


def test_half_of_the_checks_is_damage(features):
    (features / "digests.json").unlink()
    path = store.shard_path(features, "train", 0)
    file = TensorFile.open(path)
    tensors = {name: file.tensor(name) for name in file.entries if name != f"mean{CHECKS}"}
    save_file(tensors, path, metadata={"json": json.dumps(file.metadata)})
    with pytest.raises(FeatureError, match="its checks are incomplete"):
        FeatureSet.open(features, "train")


def test_folders_of_older_versions_are_read_and_mended(items, features, whole):
    """No checks in the files, no digests, relative paths, no lengths."""
    expected = FeatureSet.open(whole, "train").batch(range(9))
    (features / "digests.json").unlink()
    for path in [*features.glob("shards/*"), *features.glob("texts/*"), features / "codec.safetensors"]:
        plain = {name: tensor for name, tensor in load_file(path).items() if not name.endswith(CHECKS)}
        if path.parent == features:
            with safe_open(path, framework="pt") as file:
                metadata = {name: text for name, text in file.metadata().items() if name != "content"}
        else:
            kept = {k: v for k, v in TensorFile.open(path).metadata.items() if k not in ("digest", "codec")}
            metadata = {"json": json.dumps(kept)}
        save_file(plain, path, metadata=metadata)
    block = json.loads((features / "plan" / "00000.json").read_text())
    (features / "plan" / "00000.json").write_text(json.dumps({"items": block["items"]}))
    opened = FeatureSet.open(features, "train")
    assert torch.equal(opened.batch(range(9)).latents, expected.latents)
    assert [record.id for record in opened.records] == [item.id for item in items]
    opened.verify()
    load_codec(features)
    before = contents(features)
    assert extract(items, features, CONFIG).made_again == []
    assert contents(features) == before
    path = store.shard_path(features, "train", 1)
    path.write_bytes(path.read_bytes()[:3000])
    assert extract(items, features, CONFIG).made_again == ["shards/train-00001.safetensors: damaged"]
    assert torch.equal(FeatureSet.open(features, "train").batch(range(9)).latents, expected.latents)


# Files that kill


def deadly(job: int) -> int:
    if job in (3, 20):
        os.kill(os.getpid(), signal.SIGKILL)
    return job * job


def always_deadly(job: int) -> int:
    os._exit(1)


def test_a_job_that_kills_its_worker_is_left_out_and_the_others_are_done():
    with WorkerPool(2) as workers:
        found = list(workers.ordered(deadly, range(30), died=lambda job: -job, ahead=4))
    assert found == [(job, -job if job in (3, 20) else job * job) for job in range(30)]


def test_too_many_deaths_end_the_work_in_one_line(monkeypatch):
    monkeypatch.setattr(pool, "MOST_DEATHS", 3)
    with WorkerPool(1) as workers, pytest.raises(ChildProcessError, match=r"died 4 times .* with fewer workers"):
        list(workers.ordered(always_deadly, range(9), died=lambda job: -job))


def test_a_file_that_kills_its_reader_is_named_and_left_out(items, tmp_path):
    """A command of its own, whose workers die when they open s4.wav."""
    rows = [json.dumps({"id": i.id, "file": str(i.path), "caption": i.caption, "split": i.split}) for i in items]
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    (tmp_path / "sitecustomize.py").write_text(
        "import multiprocessing, os, sys\n"
        "def hook(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('s4.wav') and multiprocessing.parent_process() is not None:\n"
        "        os.kill(os.getpid(), 11)\n"
        "sys.addaudithook(hook)\n"
    )
    command = [sys.executable, "-m", "scripts.extract", "--data", str(tmp_path / "m.jsonl"), "--out"]
    command += [str(tmp_path / "features"), "--duration-s", "1", "--workers", "1", "--shard-size", "3"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "examples: train 8, val 0, test 0" in done.stdout
    assert "left out: 1 (1 x a worker process died while reading it" in done.stdout
    assert "s4: a worker process died" in done.stdout


# Odd text


def test_odd_names_and_words_come_back(tmp_path):
    media = tmp_path / "media"
    for k, name in enumerate(["a\u2028b", "n\u0085l", "line\nbreak"]):
        sound(media / name / f"{name}.wav", k)
    (folder := Path(os.fsdecode(os.fsencode(media) + b"/m\xfcll"))).mkdir()
    sound(media / "plain.wav", 7).rename(folder / os.fsdecode(b"caf\xe9.wav"))
    for k in range(4):
        sound(media / f"g{k}.wav", 10 + k)
    (media / "g0.txt").write_bytes(b"\xef\xbb\xbfrain\n")
    (media / "g1.txt").write_bytes("caf\xe9".encode("latin-1"))
    left_out: list[tuple[str, str]] = []
    items = [replace(item, split="train") for item in read_manifest(media, left_out)]
    report = extract(items, tmp_path / "features", CONFIG, left_out=left_out)
    assert report.skipped == [("g1", "its caption g1.txt is not UTF-8 text (byte 3)")]
    opened = FeatureSet.open(tmp_path / "features", "train")
    records = {record.id: record for record in opened.records}
    assert set(records) == {
        "a\u2028b/a\u2028b", "n\u0085l/n\u0085l", "line\nbreak/line\nbreak", "m\\xfcll/caf\\xe9", "g0", "g2", "g3"
    }  # fmt: skip
    assert records["a\u2028b/a\u2028b"].label == "a\u2028b"
    assert records["g0"].caption == "rain"
    assert records["m\\xfcll/caf\\xe9"].label == "m\\xfcll"
    assert all(Path(record.path).is_file() for record in opened.records)
    with pytest.raises(ValueError, match=r"g1: its caption g1\.txt is not UTF-8 text"):
        read_manifest(media)


def test_rows_that_no_file_can_hold_are_named_and_left_out(tmp_path):
    rows = [
        rb'{"file": "a.wav", "id": "fine", "caption": "a' + "\u2028".encode() + rb'b", "label": "\u2028"}',
        rb'{"file": "a\u0000b.wav", "id": "nul"}',
        rb'{"file": "a.wav", "id": "words", "caption": "\ud800 bell"}',
        rb'{"file": "a.wav", "id": "\udfff"}',
        rb'{"file": "\ud800.wav", "id": "path"}',
        b"[" * 100_000,
    ]
    table = tmp_path / "m.jsonl"
    table.write_bytes(b"\n".join(rows))
    left_out: list[tuple[str, str]] = []
    (item,) = read_manifest(table, left_out)
    assert (item.id, item.caption, item.label) == ("fine", "a\u2028b", "")
    assert dict(left_out) == {
        "nul": "its path holds NUL",
        "words": "its caption holds half a surrogate pair",
        "\\udfff": "its id holds half a surrogate pair",
        "path": "its path holds half a surrogate pair",
        "line 6 of m.jsonl": "it is nested too deep",
    }


def test_pieces_that_would_share_a_name_are_refused_naming_both_items(tmp_path):
    first = Item(id="a", path=sound(tmp_path / "a.wav", 0, 3.0), caption="x", split="train")
    second = Item(id="a@1s", path=sound(tmp_path / "b.wav", 1), caption="x", split="train")
    with pytest.raises(FeatureError, match="items 'a', 'a@1s' both have a piece called 'a@1s'; rename one"):
        extract([first, second], tmp_path / "features", CONFIG)
    assert not (tmp_path / "features" / "shards").exists()


# Moves


def test_a_folder_moved_with_its_media_is_used_from_anywhere(tmp_path, monkeypatch):
    old = tmp_path / "old" / "demo"
    sounds(old / "world" / "clips", 8)
    monkeypatch.chdir(tmp_path / "old")
    items = [replace(item, split="train") for item in read_manifest(Path("demo/world/clips"))]
    assert not items[0].path.is_absolute()
    extract(items, old / "features", CONFIG)
    monkeypatch.chdir("/")
    assert FeatureSet.open(old / "features", "train").records[0].path == str(old / "world" / "clips" / "s0.wav")
    new = tmp_path / "new"
    new.mkdir()
    shutil.move(old, new / "demo")
    opened = FeatureSet.open(new / "demo" / "features", "train")
    assert [record.path for record in opened.records] == [
        str(new / "demo" / "world" / "clips" / f"s{k}.wav") for k in range(8)
    ]
    load_codec(new / "demo" / "features")
    sound(new / "demo" / "world" / "clips" / "s0.wav", 0, 2.0)  # another file of that name
    opened = FeatureSet.open(new / "demo" / "features", "train")
    assert opened.records[0].path == str(old / "world" / "clips" / "s0.wav")
    line = opened.gone(opened.records[0], "no such file")
    assert str(old) in line
    assert str(new / "demo" / "features") in line


def test_relative_paths_of_older_folders_are_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "runs/demo/world").mkdir(parents=True)
    (tmp_path / "runs/demo/world/a.wav").touch()
    monkeypatch.chdir("/")
    found = Moved(tmp_path / "runs/demo/features")
    assert found(Path("runs/demo/world/a.wav")) == tmp_path / "runs/demo/world/a.wav"
    assert found(Path("runs/demo/world/b.wav")) == tmp_path / "runs/demo/world/b.wav"
    assert found(Path("nowhere/b.wav")) == Path("nowhere/b.wav")


def test_files_obey_the_umask(items, tmp_path):
    before = os.umask(0o027)
    try:
        extract(items, tmp_path / "features", CONFIG)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "features").rglob("*") if path.is_file()}
    assert modes == {0o640}


def test_bytes_do_not_depend_on_where_the_folder_is(items, whole, tmp_path):
    extract(items, tmp_path / "elsewhere" / "deep" / "features", CONFIG)
    assert contents(tmp_path / "elsewhere" / "deep" / "features") == contents(whole)


def test_an_old_plan_block_of_another_extraction_is_not_taken(items, features):
    block = features / "plan" / "00000.json"
    with pytest.raises(FeatureError, match="belongs to another extraction"):
        resume.read_block(block, len(items), "0" * 64)
