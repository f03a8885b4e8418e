"""The feature store: what is written comes back, bytes per clip against float32 memory maps, and named damage."""

import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from teacher.features import store
from teacher.features.codec import latent_statistics
from teacher.features.dataset import FeatureSet
from teacher.features.rows import Buffers
from teacher.features.store import Record, Shard, ShardFile, ShardLayout
from teacher.files import write_json
from teacher.files.errors import FeatureError
from teacher.files.tensor_file import OpenFiles, TensorFile, write_checked
from teacher.network.mmaudio import MMAudio
from teacher.network.sequence import MMAUDIO_WIDTHS, ConditionWidths, image_frames, sync_frames
from teacher.network.variants import variant

DURATION_S = 1.0
FRAMES, CHANNELS = 32, 20  # ceil(16000 / 512)
MEAN, STD = torch.linspace(-1, 1, CHANNELS), torch.linspace(0.5, 2, CHANNELS)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def record(name: str, caption: str, *, video: bool, events: tuple[float, ...] | None = None) -> Record:
    return Record(
        id=f"{name}@1s",
        item_id=name,
        path=f"/media/{name}.mp4",
        start_s=1.0,
        duration_s=DURATION_S,
        caption=caption,
        label="bell" if video else "",
        events_s=events,
        has_video=video,
        has_audio=True,
        group_id="duo" if name in "de" else "",
    )


def shard(seed: int, names: str, texts: Sequence[int], captions: Sequence[str], *, std: bool) -> Shard:
    """A row per letter; lower case has no picture. A repeated letter is one sound with another caption."""
    letters = list(dict.fromkeys(names))
    pictures = [letter for letter in letters if letter.isupper()]
    return Shard(
        records=[
            record(name, captions[text], video=name.isupper(), events=(0.25,) if name == "A" else None)
            for name, text in zip(names, texts, strict=True)
        ],
        sound_index=[letters.index(name) for name in names],
        video_index=[pictures.index(name) if name.isupper() else -1 for name in names],
        text_index=texts,
        mean=draw(seed, len(letters), FRAMES, CHANNELS),
        std=draw(seed + 1, len(letters), FRAMES, CHANNELS).abs() if std else None,
        clip=draw(seed + 2, len(pictures), image_frames(DURATION_S), MMAUDIO_WIDTHS.image),
        sync=draw(seed + 3, len(pictures), sync_frames(DURATION_S), MMAUDIO_WIDTHS.sync),
        skipped=[("lost", "silent")],
        padded=1,
    )


CAPTIONS = ["a bell", "ein «Ton»", "", "rain\nfalls", "wind"]


def text_features(shared: int) -> torch.Tensor:
    features = draw(99, len(CAPTIONS), MMAUDIO_WIDTHS.text_tokens, MMAUDIO_WIDTHS.text)
    features[:, :shared] = features[0, :shared].clone()
    return features


def write(folder: Path, *, std: bool = True, shared: int = 1, per_file: int = 2) -> list[Shard]:
    """Two training shards with 3 + 4 rows."""
    shards = [
        shard(1, "ABc", (0, 3, 1), CAPTIONS, std=std),
        shard(11, "ddeF", (4, 1, 2, 0), CAPTIONS, std=std),
    ]
    for k, made in enumerate(shards):
        store.write_shard(store.shard_path(folder, "train", k), made)
    features = text_features(shared)
    for k, begin in enumerate(range(0, len(CAPTIONS), per_file)):
        own = slice(begin, begin + per_file)
        store.write_texts(store.text_path(folder, k), CAPTIONS[own], features[own], shared_positions=shared)
    info = {
        "format": store.FORMAT,
        "version": store.FORMAT_VERSION,
        "config": {},
        "encoders": {"text": "x"},
        "digest": "d",
        "duration_s": DURATION_S,
        "sequence": {"sample_rate": 16_000, "hop_length": 256, "latent_downsample": 2},
        "latent_channels": CHANNELS,
        "codec": {"name": "x", "has_std": std, "digest": "c", "latent_space": "c"},
        "texts": {"count": len(CAPTIONS), "per_file": per_file},
        "shards": {"train": 2, "val": 0},
        "counts": {"train": 7, "val": 0},
        "latent_mean": MEAN.tolist(),
        "latent_std": STD.tolist(),
    }
    write_json(folder / "features.json", info)
    return shards


def test_widths_are_those_of_the_stored_features(tmp_path):
    """Encoders of any width: 6 channels a picture, 5 a synchronisation feature, 3 positions of 4 channels a text."""
    for k, made in enumerate(write(tmp_path)):
        narrow = replace(made, clip=made.clip[..., :6], sync=made.sync[..., :5])
        store.write_shard(store.shard_path(tmp_path, "train", k), narrow)
    features = text_features(1)[:, :3, :4]
    for k in range(3):
        own = slice(2 * k, 2 * k + 2)
        store.write_texts(store.text_path(tmp_path, k), CAPTIONS[own], features[own], shared_positions=1)
    widths = ConditionWidths(image=6, sync=5, text=4, text_tokens=3)
    assert store.folder_widths(tmp_path) == widths
    c = FeatureSet.open(tmp_path, "train").batch([0, 2]).conditions
    assert (c.clip.shape[2], c.sync.shape[2], c.text.shape[1:]) == (6, 5, (3, 4))
    net = MMAudio(replace(variant("debug_16k"), latent_channels=CHANNELS).with_widths(widths))
    assert net(torch.zeros(2, FRAMES, CHANNELS), torch.zeros(2), c).shape == (2, FRAMES, CHANNELS)
    store.write_shard(store.shard_path(tmp_path, "train", 1), write(tmp_path / "other")[1])
    with pytest.raises(FeatureError, match="hold features of different widths; extract again"):
        FeatureSet.open(tmp_path, "train")


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16().float()


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_rows_come_back_in_any_order_over_all_shards(tmp_path, shared):
    shards = write(tmp_path, shared=shared)
    features = FeatureSet.open(tmp_path, "train")
    assert len(features) == len(features.records) == 7
    order = [6, 0, 3, 4, 2, 2]
    batch = features.batch(order)
    where = [(1, 2), (0, 0), (1, 0), (1, 0), (0, 2), (0, 2)]  # shard, sound: rows 3 and 4 are one sound
    for place, (k, sound) in enumerate(where):
        expected = (rounded(shards[k].mean[sound]) - MEAN) / STD
        assert torch.equal(batch.latents[place], expected)
    conditions = batch.conditions
    assert conditions.has_clip.tolist() == conditions.has_sync.tolist() == [True, True, False, False, False, False]
    assert torch.equal(conditions.clip[0], rounded(shards[1].clip[0]))
    assert torch.equal(conditions.sync[1], rounded(shards[0].sync[0]))
    assert not conditions.clip[2:].any()
    assert not conditions.sync[2:].any()
    texts = [0, 0, 4, 1, 1, 1]
    assert torch.equal(conditions.text, rounded(text_features(shared))[texts])
    assert conditions.has_text.tolist() == [True] * 6
    assert features.batch([5]).conditions.has_text.tolist() == [False]  # the empty caption
    assert batch.indices.tolist() == order


def test_rows_keep_their_group_and_rows_without_one_are_stored_as_before_there_were_groups(tmp_path):
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    assert [r.group_id for r in features.records] == ["", "", "", "duo", "duo", "duo", ""]
    lines = [line for k in range(2) for line in features.rows.shards[k].lines()]
    assert ["group_id" in line for line in lines] == [False, False, False, True, True, True, False]


def test_a_codec_without_std_keeps_every_bit_of_its_latents(tmp_path):
    shards = write(tmp_path, std=False)
    features = FeatureSet.open(tmp_path, "train", statistics=(torch.zeros(CHANNELS), torch.ones(CHANNELS)))
    assert torch.equal(features.batch([0, 1, 2]).latents, shards[0].mean)
    drawn = features.batch([0, 1], generator=torch.Generator().manual_seed(3)).latents
    assert torch.equal(drawn, shards[0].mean[:2])  # nothing to draw


def test_a_generator_draws_from_the_posterior(tmp_path):
    shards = write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    drawn = features.batch([0, 1], generator=torch.Generator().manual_seed(5)).latents
    assert shards[0].std is not None
    z = rounded(shards[0].mean[:2]) + rounded(shards[0].std[:2]) * draw(5, 2, FRAMES, CHANNELS)
    torch.testing.assert_close(drawn, (z - MEAN) / STD, atol=1e-6, rtol=1e-6)
    other = features.with_statistics(MEAN + 1, 2 * STD)
    torch.testing.assert_close(
        other.batch([0]).latents, (features.batch([0]).latents - 1 / STD) / 2, atol=1e-6, rtol=1e-6
    )
    with pytest.raises(FeatureError, match=r"a positive std of shape \(20,\), got \(20,\) and \(3,\)"):
        features.with_statistics(MEAN, torch.ones(3))


def test_records_come_back(tmp_path):
    shards = write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    assert list(features.records) == [*shards[0].records, *shards[1].records]
    assert features.records[-1] == shards[1].records[-1]
    assert features.records[1:3] == shards[0].records[1:]
    assert features.records[1].caption == "rain\nfalls"
    with pytest.raises(IndexError):
        features.records[7]


def test_statistics_of_shards_are_those_of_all_rows_with_picture(tmp_path):
    shards = write(tmp_path)
    layout = ShardLayout.of(store.read_info(tmp_path))
    opened = [ShardFile.open(store.shard_path(tmp_path, "train", k), layout) for k in range(2)]
    assert opened[0].skipped == [("lost", "silent")]
    assert opened[0].padded == 1
    rows = torch.cat([made.mean[made.sound_index].double() for made in shards])  # a repeated sound counts twice
    video = torch.tensor([True, True, False, False, False, False, True])
    for splits, chosen in (
        (["train", "train"], rows[video]),
        (["train", "test"], rows[:3][video[:3]]),
        (["test", "test"], rows[video]),
    ):
        mean, std = latent_statistics(opened, splits)
        values = chosen.flatten(0, 1)
        torch.testing.assert_close(mean.double(), values.mean(0), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(std.double(), values.std(0), atol=1e-6, rtol=1e-6)  # unbiased by default


def test_statistics_without_pictures_are_those_of_all_rows(tmp_path):
    made = [shard(seed, "abc", (0, 1, 2), CAPTIONS, std=True) for seed in (1, 7)]
    write(tmp_path)
    for k, one in enumerate(made):
        store.write_shard(store.shard_path(tmp_path, "train", k), one)
    layout = ShardLayout.of(store.read_info(tmp_path))
    opened = [ShardFile.open(store.shard_path(tmp_path, "train", k), layout) for k in range(2)]
    mean, std = latent_statistics(opened, ["train", "train"])
    values = torch.cat([one.mean for one in made]).double().flatten(0, 1)
    torch.testing.assert_close(mean.double(), values.mean(0), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(std.double(), values.std(0), atol=1e-6, rtol=1e-6)


def test_files_take_less_than_half_of_float32_maps(tmp_path):
    """8 s at 16 kHz, every caption different: 1,207,360 B a clip with picture, 355,392 B without, as memory maps."""
    count, duration_s = 16, 8.0
    zeros = torch.zeros
    captions = [f"caption number {k:06d} of a set in which none occurs twice" for k in range(count)]
    for split, video, maps_bytes in (("av", True, 1_207_360), ("at", False, 355_392)):
        pictures = count if video else 0
        store.write_shard(
            store.shard_path(tmp_path, split, 0),
            Shard(
                records=[record(f"{'x' * 64}{k}", captions[k], video=video) for k in range(count)],
                sound_index=range(count),
                video_index=[k if video else -1 for k in range(count)],
                text_index=range(count),
                mean=zeros(count, 250, 20),
                std=zeros(count, 250, 20),
                clip=zeros(pictures, image_frames(duration_s), MMAUDIO_WIDTHS.image),
                sync=zeros(pictures, sync_frames(duration_s), MMAUDIO_WIDTHS.sync),
                skipped=[],
                padded=0,
            ),
        )
        texts = zeros(count, MMAUDIO_WIDTHS.text_tokens, MMAUDIO_WIDTHS.text)
        store.write_texts(store.text_path(tmp_path, 0), captions, texts, shared_positions=1)
        size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
        assert size < 0.5 * maps_bytes * count
        store.shard_path(tmp_path, split, 0).unlink()


def test_opening_reads_headers_only_and_few_files_stay_open(tmp_path):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0

    write(tmp_path)
    before = descriptors()
    opened = FeatureSet.open(tmp_path, "train")
    assert len(opened.rows._files) == 0
    assert descriptors() == before
    expected = opened.batch(range(7)).latents
    assert len(opened.rows._files) == 5  # two shards, three text files
    opened.rows._files = OpenFiles(limit=2)
    assert descriptors() == before  # and those let go are closed
    torch.testing.assert_close(opened.batch(range(7)).latents, expected)
    assert len(opened.rows._files) == 2
    assert descriptors() == before + (2 if before else 0)
    again = pickle.loads(pickle.dumps(opened))
    assert torch.equal(again.batch([4, 1]).conditions.text, opened.batch([4, 1]).conditions.text)


def test_shared_positions_that_differ_are_refused(tmp_path):
    with pytest.raises(FeatureError, match="the first 1 text positions were to be equal for all captions"):
        store.write_texts(tmp_path / "t", CAPTIONS, text_features(0), shared_positions=1)


def rewrite(path: Path, **changes: torch.Tensor) -> None:
    """The same file with some tensors replaced."""
    file = TensorFile.open(path)
    write_checked(path, {name: file.tensor(name) for name in file.entries} | changes, file.metadata)


def damage_short(folder: Path) -> None:
    path = store.shard_path(folder, "train", 1)
    path.write_bytes(path.read_bytes()[:-10])


def damage_header(folder: Path) -> None:
    store.shard_path(folder, "train", 0).write_bytes(b"\xff" * 100)


def damage_missing_text(folder: Path) -> None:
    store.text_path(folder, 1).unlink()


def damage_index(folder: Path) -> None:
    rewrite(store.shard_path(folder, "train", 0), sound_index=torch.tensor([0, 3, 1]))


def damage_text_index(folder: Path) -> None:
    rewrite(store.shard_path(folder, "train", 0), text_index=torch.tensor([0, 1, 5]))


def damage_shape(folder: Path) -> None:
    rewrite(store.shard_path(folder, "train", 0), clip=torch.zeros(2, 7, MMAUDIO_WIDTHS.image, dtype=torch.bfloat16))


def damage_dtype(folder: Path) -> None:
    rewrite(store.shard_path(folder, "train", 1), mean=torch.zeros(3, FRAMES, CHANNELS))


def damage_rows(folder: Path) -> None:
    write_again = store.shard_path(folder, "train", 0)
    store.write_shard(write_again, shard(1, "AB", (0, 3), CAPTIONS, std=True))


def damage_version(folder: Path) -> None:
    info = json.loads((folder / "features.json").read_text())
    write_json(folder / "features.json", info | {"version": 1})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_short, r"train-00001\.safetensors: cannot be read .* bytes, its header says .*extract again"),
        (damage_header, r"train-00000\.safetensors: cannot be read \(no safetensors header\)"),
        (damage_missing_text, r"texts/00001\.safetensors: cannot be read"),
        (damage_index, r"train-00000\.safetensors: sound_index reaches outside 0\.\.2"),
        (damage_text_index, r"train-00000\.safetensors: text_index reaches outside 0\.\.4"),
        (damage_shape, r"train-00000\.safetensors: clip has shape \(2, 7, 1024\)"),
        (damage_dtype, r"train-00001\.safetensors: mean is torch\.float32, expected torch\.bfloat16"),
        (damage_rows, "train has 6 rows, features.json says 7"),
        (damage_version, "features of version 2 are read, found 1; extract again"),
    ],
)
def test_damage_is_found_when_opening_and_named_in_one_line(tmp_path, damage, message):
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(FeatureError, match=message) as caught:
        FeatureSet.open(tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_numbers_that_are_not_finite_are_found(tmp_path):
    shards = write(tmp_path)
    bad = shards[1].mean.clone()
    bad[2, 5, 5] = float("nan")
    rewrite(store.shard_path(tmp_path, "train", 1), mean=bad.bfloat16())
    features = FeatureSet.open(tmp_path, "train")
    features.batch([0, 1, 2, 3])
    with pytest.raises(FeatureError, match=r"train-00001\.safetensors: mean 2 holds NaN or infinity"):
        features.batch([0, 6])
    with pytest.raises(FeatureError, match=r"train-00001\.safetensors: mean holds NaN or infinity"):
        features.verify()
    write(tmp_path)
    FeatureSet.open(tmp_path, "train").verify()
    rewrite(store.text_path(tmp_path, 0), text=torch.full((2, 76, MMAUDIO_WIDTHS.text), float("inf")).bfloat16())
    with pytest.raises(FeatureError, match=r"texts/00000\.safetensors: text holds NaN or infinity"):
        FeatureSet.open(tmp_path, "train").verify()


def test_a_file_that_changes_under_an_open_set_is_refused(tmp_path):
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    damage_short(tmp_path)
    with pytest.raises(FeatureError, match=r"train-00001\.safetensors: cannot be read .* when the folder was opened"):
        features.batch([6])


def test_a_batch_that_is_still_held_keeps_its_numbers(tmp_path):
    write(tmp_path)
    features = FeatureSet.open(tmp_path, "train")
    held = features.batch([0, 1, 2])
    slice_of_another = features.batch([4, 5, 6]).conditions.text[1:]
    expected = held.latents.clone(), held.conditions.sync.clone(), slice_of_another.clone()
    for _ in range(4):
        features.batch([6, 5, 4])  # takes the memory of every batch that is gone
    assert torch.equal(held.latents, expected[0])
    assert torch.equal(held.conditions.sync, expected[1])
    assert torch.equal(slice_of_another, expected[2])


def test_memory_of_a_batch_that_is_gone_is_taken_again():
    buffers = Buffers()
    first = torch.from_numpy(buffers.take((4, 3)))
    address, part = first.data_ptr(), first[2:].view(-1)
    del first
    assert buffers.take((4, 3)).ctypes.data != address  # a view still holds it
    del part
    assert buffers.take((3, 3)).ctypes.data == address
    assert buffers.take((5, 3)).shape == (5, 3)
    zeros = buffers.zeros((2, 3))
    assert not zeros.any()
    assert buffers.zeros((2, 3)).ctypes.data == zeros.ctypes.data


def _header(described, data=b""):
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "content",
    [
        _header(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,1e400]}}', bytes(4)),
        _header(b'{"w":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}', bytes(4)),
        _header(b"[" * 200_000 + b"]" * 200_000),
        _header(f'{{"__metadata__":{{"json":"{"[" * 100_000}"}},"w":{ONE}}}'.encode(), bytes(4)),
        _header(f'{{"w":{ONE},"w":{ONE}}}'.encode(), bytes(4)),
        _header(f'{{"w":{ONE},"v":{ONE}}}'.encode(), bytes(4)),
        _header(b"[]"),
        _header({"__metadata__": "x"}),
    ],
    ids=["offset", "shape", "deep header", "deep metadata", "a name twice", "overlapping", "a list", "metadata"],
)
def test_headers_that_no_writer_writes_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FeatureError, match="cannot be read") as caught:
        TensorFile.open(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
