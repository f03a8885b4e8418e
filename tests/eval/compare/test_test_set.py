"""The clips a comparison is made on: every form of list that is read, and clips that are named, left out and never
replaced."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.compare.hygiene import TestFacts, write_facts
from eval.compare.test_set import TestSet, match_ids, read_test_ids
from eval.compare.training_sounds import TrainingSounds, read_waves
from eval.features.embedded import EmbeddedAudioFeatures, EmbeddedClassifier
from eval.features.sources import EmbeddedSource
from eval.metrics.onsets import OnsetScorer
from teacher.features.config import ExtractConfig
from teacher.features.dataset import FeatureSet
from teacher.features.extract import extract
from teacher.features.store import Record
from teacher.lists.manifest import Item
from teacher.media import write_audio
from tests.eval.compare.sounds import RATE, TEST, sound


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def record(item_id: str, start_s: float | None = None) -> Record:
    return Record(
        id=item_id if start_s is None else f"{item_id}@{start_s:g}s",
        item_id=item_id,
        path=f"/m/{item_id}.mp4",
        start_s=start_s or 0.0,
        duration_s=8.0,
        caption="",
        label="",
        events_s=None,
        has_video=True,
        has_audio=True,
    )


def test_the_ids_a_comparison_writes_are_read_back(tmp_path):
    ids = ("Door (1)#3", "[x], y", "abc_000030@8s", "ein Ton")
    write_facts(tmp_path, [TestFacts(task="vta", ids=ids)])
    assert sorted(read_test_ids(tmp_path / "scored-vta.txt")) == sorted(ids)


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("ids.txt", "b\r\na\r\n\r\n", ("b", "a")),
        ("ids", "b\na", ("b", "a")),
        (
            "test.txt",
            "2015-02-16-16-49-06\n2015-09-29-15-44-54-838\n",
            ("2015-02-16-16-49-06", "2015-09-29-15-44-54-838"),
        ),
        (
            "names.txt",
            "2015-02-16-16-49-06_denoised\n2015-02-16-17-52-15_mic.mp4\n2015-02-22-14-33-11_denoised.wav\n",
            ("2015-02-16-16-49-06", "2015-02-16-17-52-15", "2015-02-22-14-33-11"),
        ),
        (
            "greatesthit_video_test.json",
            '["2015-03-25-00-58-22", "2015-09-12-04-38-02-216"]',
            ("2015-03-25-00-58-22", "2015-09-12-04-38-02-216"),
        ),
        # CondFoleyGen's clips: a video and where in it; no id of a whole video.
        ("greatesthit_test.json", '["2015-09-12-04-38-02-78_19844"]', ("2015-09-12-04-38-02-78_19844",)),
        (
            "vggsound.csv",
            'abc,30,"dog, barking",train\n-x_y,7,"rain, wind",test\nq,0,x,test\n',
            ("-x_y_000007", "q_000000"),
        ),
        ("first.csv", '"a",30,"audio",test\n', ("a_000030",)),
        ("named.csv", "id,sec,caption,split\nabc,30,dog,train\nxyz,7,rain,test\n", ("xyz_000007",)),
        ("vgg-test.tsv", "id\tlabel\nabc_000030\tdog\n", ("abc_000030",)),
        ("captions.tsv", 'caption\tid\na 5" nail\tabc\n', ("abc",)),
        ("test.csv", "audiocap_id,youtube_id,start_time,caption\n103,yt,30,A man\n104,yt,30,Two men\n", ("103", "104")),
        ("AudioCaps_audioldm_data.csv", "name,caption\nYabc,A man\n", ("Yabc",)),
        ("clotho.csv", "file_name,caption_1,caption_2\na.wav,x,y\n", ("a#1", "a#2")),
        ("m.csv", "id,file,caption,split\na,a.mp4,x,train\nb,b.mp4,x,test\nc,c.mp4,x,val\n", ("b",)),
        ("m.tsv", "id\tvideo\tcaption\tsplit\na\ta.mp4\tx\ttrain\nb\tb.mp4\tx\ttest\n", ("b",)),
        ("m.jsonl", '{"file": "a.mp4", "split": "test"}\n{"file": "b.mp4", "split": "train"}\n', ("a",)),
    ],
)
def test_test_clips_are_read_from(tmp_path, name, text, ids):
    assert read_test_ids(write(tmp_path / name, text)) == ids


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("ids.txt", "\n\n", "lists no test clips"),
        ("ids.txt", "a\nb\na\n", "an id must be listed once, these are not: a"),
        ("ids.txt", "id\tlabel\na\tb\n", "must hold an id a line"),
        ("ids.json", '{"vta": ["a"]}', "must be a JSON list of names"),
        ("ids.json", "[1]", "must be a JSON list of names"),
        ("ids.json", "[", "is not JSON"),
        ("t.csv", "abc,30,dog,train\n", "holds no rows of split test"),
        ("t.csv", "a,b\nc,d\n", "is no list of test clips; known are an id a line"),
        ("t.csv", "", "is no list of test clips"),
        ("t.tsv", "id\tsize\na\t1\n", "it begins 'id,size'"),
        ("t.xlsx", "", "is no list of test clips"),
        ("m.csv", "file,split\na.mp4,train\n", "lists no test clips"),
        ("clips.jsonl", '{"task": "vta"}\n', "row 1 has no file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, name, text, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - looked at below
        read_test_ids(write(tmp_path / name, text))
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    for name in ("none.txt", "none.csv", "none.jsonl"):
        with pytest.raises(ValueError, match=rf"{name}: (cannot be read|no such file)"):
            read_test_ids(tmp_path / name)
    (tmp_path / "bytes.txt").write_bytes(b"a\xff\n")
    with pytest.raises(ValueError, match=r"bytes\.txt: is not UTF-8 text"):
        read_test_ids(tmp_path / "bytes.txt")


def test_an_id_names_its_record_or_all_windows_of_its_item():
    records = [record("a"), record("b", 0), record("b", 8), record("c", 0), record("c", 8), record("d")]
    found = match_ids(("c@8s", "b", "gone", "a"), records)
    assert found.ids == ("a", "b@0s", "b@8s", "c@8s")  # in the order of the records
    assert found.missing == ("gone",)
    assert str(found) == "3 of 4 listed ids are there, as 4 clips; missing: gone"


def test_nothing_takes_the_place_of_a_missing_clip():
    records = [record("a", 8), record("abcdefghijk_000040"), record("2015-09-29-15-44-54-57")]
    listed = ("a@0s", "abcdefghijk_000030", "2015-09-29-15-44-54", "2015-09-29-15-44-54-57_19844")
    assert match_ids(listed, records) == match_ids(listed, [])
    assert match_ids(listed, records).ids == ()
    assert match_ids(listed, records).missing == listed


def test_other_ways_of_writing_an_id_are_known_and_come_last():
    records = [record("abcdefghijk_30"), record("2015-02-16-16-49-06_denoised", 0), record("lmnopqrstuv_000007")]
    listed = ("abcdefghijk_000030", "2015-02-16-16-49-06", "lmnopqrstuv_7")
    assert match_ids(listed, records).missing == ()
    assert match_ids(listed, records).ids == tuple(r.id for r in records)
    both = [record("abcdefghijk_30", 0), record("abcdefghijk_000030", 0)]
    assert match_ids(["abcdefghijk_000030"], both).ids == ("abcdefghijk_000030@0s",)
    with pytest.raises(ValueError, match="abcdefghijk_0030 names 2 items: abcdefghijk_30, abcdefghijk_000030"):
        match_ids(["abcdefghijk_0030"], both)


def test_two_files_of_one_video_keep_their_names(tmp_path):
    names = ("2015-02-16-16-49-06_denoised", "2015-02-16-16-49-06_mic")
    ids = read_test_ids(write(tmp_path / "scored-vta.txt", "\n".join(names)))
    assert ids == names
    assert match_ids(ids, [record(name) for name in names]).ids == names


def test_a_json_list_and_the_lines_of_a_text_give_the_same(tmp_path):
    ids = ["b", "a b", "2015-02-16-16-49-06"]
    lines = write(tmp_path / "a.txt", "\n".join(ids))
    assert read_test_ids(lines) == read_test_ids(write(tmp_path / "a.json", json.dumps(ids))) == tuple(ids)


@pytest.fixture
def media(original):
    """The folder; its media are as they were again after the test."""
    originals = {path: path.read_bytes() for path in original.glob("*.wav")}
    yield original
    for path, content in originals.items():
        path.write_bytes(content)


@pytest.fixture(scope="module")
def embedded_source(original):
    features = FeatureSet.open(original / "features", "train")
    extractor = EmbeddedAudioFeatures(sample_rate=RATE)
    embedded = extractor(read_waves(features, features.records))
    return EmbeddedSource(
        extractor=extractor, classifier=EmbeddedClassifier.fit(embedded, ["a", "b"] * 4), labels="labels"
    )


@pytest.fixture
def build(tmp_path, embedded_source):
    """The test set of a folder of media; features of real sound go to the test's own cache."""

    def built(folder, **changes):
        options = {
            "video": False,
            "max_clips": 99,
            "clip_scorers": (OnsetScorer(),),
            "cache": tmp_path / "cache",
        } | changes
        return TestSet.build(folder / "features", sources=(embedded_source,), **options)

    return built


def test_an_unreadable_clip_fails_the_run_and_is_named(media, build):
    (media / "test2.wav").write_bytes(b"not a sound")
    with pytest.raises(ValueError, match=r"test2\.wav: cannot be read any more"):
        build(media)


@pytest.mark.parametrize("fault", ["gone", "broken", "silent"])
def test_an_excluded_clip_is_listed_and_in_nothing_that_is_scored(media, build, fault):
    whole = build(media)
    real = whole.waves(0, 5)
    path = media / "test2.wav"
    if fault == "gone":
        path.unlink()
    elif fault == "broken":
        path.write_bytes(b"not a sound")
    else:
        write_audio(path, np.zeros(RATE, np.float32), RATE)
    test = build(media, unreadable="exclude")
    left = tuple(i for i in TEST if i != "test2")
    assert [clip_id for clip_id, _ in test.excluded] == ["test2"]
    assert test.excluded[0][1]
    # Conditions (what both models are given), scorer and reference all hold the same four, in one order.
    assert test.clips.ids == test.scorer.ids == tuple(r.id for r in test.records) == left
    conditions, waves = test.clips.conditions(0, 4), test.waves(0, 4)
    assert len(conditions) == len(waves) == len(test.scorer.reference) == 4
    keep = [k for k, i in enumerate(TEST) if i != "test2"]
    assert waves.equal(real[keep])
    assert conditions.text.equal(whole.clips.conditions(0, 5).text[keep])
    for name, tensor in whole.scorer.reference.tensors.items():
        torch.testing.assert_close(test.scorer.reference.tensors[name], tensor[keep], rtol=1e-5, atol=1e-5)


def test_a_file_that_is_back_is_heard_again(media, build):
    """Parts of one clip: the reference is cached by what is in the files, not by their names."""
    whole = build(media, part_size=1)
    content = (media / "test2.wav").read_bytes()
    (media / "test2.wav").write_bytes(b"not a sound")
    assert len(build(media, part_size=1, unreadable="exclude").scorer.reference) == 4
    (media / "test2.wav").write_bytes(content)
    again = build(media, part_size=1, unreadable="exclude")
    assert again.excluded == ()
    for name, tensor in whole.scorer.reference.tensors.items():
        assert again.scorer.reference.tensors[name].equal(tensor)
    write_audio(media / "test2.wav", sound(77), RATE)
    other = build(media, part_size=1).scorer.reference.tensors["embedded.features"]
    changed = (other != whole.scorer.reference.tensors["embedded.features"]).any(dim=1)
    assert changed.tolist() == [False, False, True, False, False]


def test_other_labels_or_sounds_of_the_same_ids_are_another_classifier(media, build, tmp_path):
    """Features of real sound by the old one are not taken for those by the new one."""

    def name(labels: str) -> str:
        items = [
            Item(id=f"train{k}", path=media / f"train{k}.wav", caption="", label=labels[k % len(labels)], split="train")
            for k in range(8)
        ]
        folder = tmp_path / f"features{len(list(tmp_path.iterdir()))}"
        extract(items, folder, ExtractConfig(duration_s=1.0, shard_size=4, workers=0))
        return TrainingSounds.read(folder).source.name

    first = name("ab")
    assert name("ab") == first
    assert name("aabb") != first
    write_audio(media / "train3.wav", sound(99), RATE)
    assert name("ab") != first


def test_a_damaged_cache_file_is_named(media, build, tmp_path):
    build(media, part_size=2)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cache/\w\w/\w+\.safetensors cannot be read .* delete it and run again"):
        build(media, part_size=2)


def test_a_clip_left_out_is_not_replaced_by_another(media, build):
    chosen = build(media, max_clips=3).clips.ids
    (media / f"{chosen[1]}.wav").unlink()
    assert build(media, max_clips=3, unreadable="exclude").clips.ids == (chosen[0], chosen[2])


def test_too_few_clips_left_and_wrong_choices_are_refused(media, build):
    with pytest.raises(ValueError, match="unreadable must be one of fail, exclude, got 'skip'"):
        build(media, unreadable="skip")
    for name in TEST[1:]:
        (media / f"{name}.wav").unlink()
    with pytest.raises(ValueError, match="1 of 5 test clips can be read; 2 are needed"):
        build(media, unreadable="exclude")


def test_a_list_of_ids_gives_exactly_those_clips(original, build):
    assert build(original, only=["test4", "test1"], max_clips=1).clips.ids == ("test1", "test4")
    with pytest.raises(ValueError, match="has no test clips train0; 1 of 2 missing"):
        build(original, only=["test4", "train0"])
