"""Test clips are found in the training data by id, by source and by content."""

import shutil
from dataclasses import replace

from eval.compare.hygiene import Overlap, TestFacts, facts_of
from eval.compare.overlap import find_overlap, read_groups, recheck_overlap, sources_of, trained_on
from eval.compare.rows import read_rows
from eval.report.blocks import markdown
from eval.report.page import facts_blocks
from teacher.features.config import ExtractConfig
from teacher.features.dataset import FeatureSet
from teacher.features.extract import extract
from teacher.lists.manifest import Item
from teacher.media import write_audio
from tests.eval.compare.sounds import RATE, TEST, clips_beside, results, run_folder, sound


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
