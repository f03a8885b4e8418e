"""Lists of test clips: every form that is read, and which extracted clips they name."""

import json
from pathlib import Path

import pytest

from eval.compare.hygiene import TestFacts, write_facts
from eval.compare.test_set import match_ids, read_test_ids
from teacher.features.store import Record


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
