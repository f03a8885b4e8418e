"""Test-set hygiene: what was scored is written down, nothing is replaced, and training data are looked through."""

import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.compare.hygiene import Overlap, TestFacts, facts_of, read_facts, scored_ids, write_facts
from eval.compare.overlap import find_overlap, read_groups, recheck_overlap, sources_of, trained_on
from eval.compare.rows import Row, ids_digest, json_line, read_clip_scores, read_rows
from eval.compare.test_set import TestSet
from eval.compare.training_sounds import TrainingSounds, read_waves
from eval.features.embedded import EmbeddedAudioFeatures, EmbeddedClassifier
from eval.features.sources import EmbeddedSource
from eval.metrics.onsets import OnsetScorer
from eval.report.blocks import markdown
from eval.report.page import facts_blocks
from teacher.features.config import ExtractConfig
from teacher.features.dataset import FeatureSet
from teacher.features.extract import extract
from teacher.files.lines import append_lines
from teacher.lists.manifest import Item
from teacher.media import write_audio

RATE = 16_000
TEST = tuple(f"test{k}" for k in range(5))


def clips_beside(path):
    return read_clip_scores(path.with_name("clips.jsonl"))


def sound(seed):
    rng = np.random.default_rng(seed)
    t = np.arange(RATE) / RATE
    wave = np.sin(2 * np.pi * rng.uniform(200, 2000) * t) * np.exp(-5 * (t % 0.5)) + 0.01 * rng.standard_normal(RATE)
    return (0.3 * wave).astype(np.float32)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Features of eight training and five test sounds of one second; media beside them."""
    folder = tmp_path_factory.mktemp("made")
    items = []
    for k, name in enumerate([*(f"train{k}" for k in range(8)), *TEST]):
        path = folder / f"{name}.wav"
        write_audio(path, sound(k), RATE)
        items.append(Item(id=name, path=path, caption=name, split="test" if name in TEST else "train"))
    extract(items, folder / "features", ExtractConfig(duration_s=1.0, shard_size=4, workers=0))
    return folder


@pytest.fixture
def media(original):
    """The folder; its media are as they were again after the test."""
    kept = {path: path.read_bytes() for path in original.glob("*.wav")}
    yield original
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.fixture(scope="module")
def listener(original):
    features = FeatureSet.open(original / "features", "train")
    extractor = EmbeddedAudioFeatures(sample_rate=RATE)
    embedded = extractor(read_waves(features, features.records))
    return EmbeddedSource(
        extractor=extractor, classifier=EmbeddedClassifier.fit(embedded, ["a", "b"] * 4), labels="labels"
    )


@pytest.fixture
def build(tmp_path, listener):
    """The test set of a folder of media; what was heard of real sound is kept in the test's own cache."""

    def built(folder, **changes):
        options = {
            "video": False,
            "max_clips": 99,
            "clip_scorers": (OnsetScorer(),),
            "cache": tmp_path / "cache",
        } | changes
        return TestSet.build(folder / "features", sources=(listener,), **options)

    return built


def run_folder(path, data):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"kind": "student", "run": {"data": [str(d) for d in data]}}))
    return path


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
    """What was heard of real sound with the old one is not taken for what the new one says."""

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


def test_digest_is_that_of_the_sorted_ids_one_a_line():
    expected = hashlib.sha256(b"B\na\n\xc3\xa9\n").hexdigest()
    assert ids_digest(["a", "é", "B"]) == ids_digest(["é", "B", "a"]) == expected
    assert ids_digest(["ab", "c"]) != ids_digest(["a", "bc"])
    for ids in (["a", "a"], ["a\nb"]):
        with pytest.raises(ValueError, match="distinct and without line breaks"):
            ids_digest(ids)


def test_facts_survive_the_file_and_changed_ids_are_noticed(tmp_path):
    overlap = Overlap(training_files=3, by_id=("a",), by_source=(), by_content=(), unread=1, unknown=("run (why)",))
    facts = TestFacts(task="vta", ids=("b", "a"), excluded=(("c", "silent"),), overlap=overlap)
    path = write_facts(tmp_path, [facts])
    assert read_facts(path) == {"vta": facts}
    assert hashlib.sha256((tmp_path / "scored-vta.txt").read_bytes()).hexdigest() == facts.digest
    write_facts(tmp_path, [TestFacts(task="tta", ids=("b",))])
    assert set(read_facts(path)) == {"vta", "tta"}  # the other task stays
    path.write_text(path.read_text().replace('"b"', '"x"', 1))
    with pytest.raises(ValueError, match="the ids of vta were changed"):
        read_facts(path)
    path.write_text('{"vta": {"ids": []}}')
    with pytest.raises(ValueError, match="does not hold the facts of a test set"):
        read_facts(path)
    with pytest.raises(ValueError, match=r"must not be scored, got \['c'\]"):
        TestFacts(task="vta", ids=("c",), excluded=(("c", "silent"),))
    told = " ".join(facts.sentences())
    for part in ("2 clips", facts.digest, "c (silent)", "1 by id (a)", "1 files are not here", "run (why)"):
        assert part in told


def results(folder, scored):
    """Rows and per-clip scores: model -> ids."""
    for model, ids in scored.items():
        row = Row(
            task="vta", model=model, steps=1, seed=0, nfe=1, guidance=1.0, metrics={"kl": 1.0}, num_clips=len(ids),
            config_digest="d", run_id="r", command="c",
        )  # fmt: skip
        lines = [
            {"task": "vta", "model": model, "steps": 1, "seed": 0, "config_digest": "d", "id": i, "kl": 1.0}
            for i in ids
        ]
        append_lines(folder / "clips.jsonl", map(json_line, lines))
        append_lines(folder / "rows.jsonl", [row.to_json()])
    return folder / "rows.jsonl"


def test_models_scored_on_other_clips_are_no_comparison(tmp_path):
    path = results(tmp_path, {"teacher": ["a", "b", "c"], "student": ["a", "b", "d"]})
    with pytest.raises(ValueError, match=r"student, 1 step, seed 0 was scored on other clips .*\['c', 'd'\]"):
        scored_ids(read_rows(path), clips_beside(path), path)


def test_a_clip_missing_on_one_side_is_noticed_and_a_rerun_is_not(tmp_path):
    path = results(tmp_path, {"teacher": ["a", "b"], "student": ["b", "a"]})
    append_lines(tmp_path / "clips.jsonl", (tmp_path / "clips.jsonl").read_text().splitlines()[:2])  # cut, run again
    assert scored_ids(read_rows(path), clips_beside(path), path) == {"vta": ("a", "b")}
    lines = (tmp_path / "clips.jsonl").read_text().splitlines()
    (tmp_path / "clips.jsonl").write_text("".join(f"{line}\n" for line in lines[:3]))
    with pytest.raises(ValueError, match=r"student, 1 step, seed 0 has 2 clips, clips\.jsonl has scores of 1"):
        scored_ids(read_rows(path), clips_beside(path), path)
    (tmp_path / "clips.jsonl").write_text('{"task": 1}\n')
    with pytest.raises(ValueError, match="line 1 is not the scores of a clip"):
        read_clip_scores(tmp_path / "clips.jsonl")


def test_a_list_that_is_not_the_scored_one_is_refused(tmp_path):
    path = results(tmp_path, {"teacher": ["a", "b"]})
    write_facts(tmp_path, [TestFacts(task="vta", ids=("a", "c"))])
    with pytest.raises(ValueError, match=r"lists other clips for vta than were scored: \['b', 'c'\]"):
        facts_of(read_rows(path), clips_beside(path), path)


def test_no_overlap_is_found_where_there_is_none(original, tmp_path):
    test = FeatureSet.open(original / "features", "test").records
    run = run_folder(tmp_path / "student", [original / "features"])
    found = find_overlap(test, [run, run])
    assert found == Overlap(training_files=8, by_id=(), by_source=(), by_content=(), unread=0)
    assert found.clean


def test_overlap_by_id_source_and_content_is_found(original, tmp_path):
    """Training on a folder with one test sound under its id, one of its group and one under another name."""
    names = {"test0": 92, "other1": 90, "other2": 91}
    items = [Item(id=f"train{k}", path=original / f"train{k}.wav", caption="", split="train") for k in range(8)]
    for name, seed in names.items():
        path = tmp_path / f"{name}.wav"
        write_audio(path, sound(seed), RATE)
        items.append(Item(id=name, path=path, caption=name, split="train"))
    copy = tmp_path / "renamed.wav"
    shutil.copy(original / "test3.wav", copy)
    items.append(Item(id="renamed", path=copy, caption="", split="train"))
    items.append(Item(id="rest", path=original / "test4.wav", caption="", split="test"))
    extract(items, tmp_path / "features", ExtractConfig(duration_s=1.0, shard_size=4, workers=0))
    run = run_folder(tmp_path / "student", [original / "features", tmp_path / "features"])
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,file,group_id\nother1,x,g\ntest1,y,g\ntest2,z,h\n")
    test = FeatureSet.open(original / "features", "test").records
    found = find_overlap(test, [run], groups=read_groups(manifest))
    assert (found.by_id, found.by_source, found.by_content) == (("test0",), ("test1",), ("test3",))
    assert (found.training_files, found.unread, found.clean) == (12, 0, False)
    copy.unlink()
    assert find_overlap(test, [run]).by_content == ()
    assert find_overlap(test, [run]).unread == 1


def test_groups_kept_with_the_features_need_no_manifest(original, tmp_path):
    """Training on one piece of "g" and others without group; tested on two of "g", one of "h" and one of none."""
    items = [Item(id=f"train{k}", path=original / f"train{k}.wav", caption="", split="train") for k in range(7)]
    items.append(Item(id="other", path=original / "train7.wav", caption="", split="train", group_id="g"))
    for k, group in enumerate(("", "g", "g", "h")):
        path = original / f"test{k}.wav"
        items.append(Item(id=f"t{k}", path=path, caption="", split="test", group_id=group))
    extract(items, tmp_path / "features", ExtractConfig(duration_s=1.0, shard_size=4, workers=0))
    test = FeatureSet.open(tmp_path / "features", "test").records
    run = run_folder(tmp_path / "student", [tmp_path / "features"])
    assert find_overlap(test, [run]).by_source == ("t1", "t2")
    # What a manifest says replaces what was extracted, on both sides.
    assert find_overlap(test, [run], groups={"t1": "x", "t3": "g"}).by_source == ("t2", "t3")
    assert find_overlap(test, [run], groups={"other": "h"}).by_source == ("t3",)


def test_clips_of_one_video_share_a_source(original):
    record = FeatureSet.open(original / "features", "test").records[0]

    def sources(item_id: str, group_id: str = "", groups: dict[str, str] | None = None) -> set[str]:
        return set(sources_of(replace(record, item_id=item_id, group_id=group_id), groups))

    assert sources("abcdefghijk_000030") == sources("abcdefghijk_000040") == {"abcdefghijk"}
    assert sources("Yabcdefghijk_30") == {"abcdefghijk"}  # AudioCaps puts a Y before the video
    assert sources("Yabcdefghijk") == sources("abcdefghijk") == {"abcdefghijk"}  # WavCaps leaves out the second
    assert sources("-0_bcdefghi_000001") == {"-0_bcdefghi"}
    assert sources("00004") == {"00004"}
    # Features extracted before groups were kept know the video alone, so it counts beside the group.
    assert sources("abcdefghijk_000030", "g") == {"abcdefghijk", "g"}
    assert sources("abcdefghijk_000030", "g", {"abcdefghijk_000030": "h"}) == {"abcdefghijk", "h"}
    assert sources("abcdefghijk_000030", "g", {"abcdefghijk_000030": ""}) == {"abcdefghijk"}


def test_training_data_that_are_not_known_are_said_so(original, tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    (published / "config.json").write_text('{"kind": "official"}')
    moved = run_folder(tmp_path / "moved", [tmp_path / "nowhere", original / "features"])
    folders, unknown = trained_on([published, moved])
    assert folders == (original / "features",)
    assert unknown == (f"{published} (its configuration names none)", f"{moved} ({tmp_path / 'nowhere'} not here)")
    test = FeatureSet.open(original / "features", "test").records
    facts = TestFacts(task="tta", ids=TEST, overlap=find_overlap(test, [published]))
    assert "none." not in facts.sentences()[2]  # nothing was looked at: no clean bill
    assert "Training data not known here" in facts.sentences()[2]


def test_finished_rows_can_be_looked_at_again(original, tmp_path):
    path = results(tmp_path, {"teacher": TEST})
    run = run_folder(tmp_path / "teacher", [original / "features"])
    found = recheck_overlap(path, original / "features", [run])["vta"]
    assert found.overlap is not None
    assert found.overlap.clean
    assert facts_of(read_rows(path), clips_beside(path), path)["vta"] == found
    assert found.digest in markdown(list(facts_blocks(found)))
