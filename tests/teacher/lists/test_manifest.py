"""Manifests: every accepted form, splits, round trip, and the one-line errors."""

import json
from pathlib import Path

import pytest

from teacher.lists.manifest import Item, read_manifest, write_manifest


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    items = [
        Item(
            id="a", path=tmp_path / "clips/a.mp4", caption="ein «Ton»", label="x", split="train", events_s=(0.1, 1.25)
        ),
        Item(id="a2", path=tmp_path / "clips/a2.mp4", caption="a", split="train", group_id="a"),
        Item(id="b", path=tmp_path / "clips/b.mp4", caption="two", label="", split="test", events_s=()),
        Item(id="c", path=Path("/elsewhere/c.wav"), caption="three", label="y", split="val", events_s=None),
    ]
    write_manifest(items, tmp_path / "manifest.jsonl")
    assert read_manifest(tmp_path / "manifest.jsonl") == items
    assert json.loads((tmp_path / "manifest.jsonl").read_text().splitlines()[0])["file"] == "clips/a.mp4"


def test_columns_have_aliases_and_defaults(tmp_path: Path) -> None:
    table = write(
        tmp_path / "m.csv",
        "Video,prompt,class,split,events_s\n"
        'v/a_b.mp4,"a, b",cat,train,"[0.5, 1]"\nv/c.mp4,,dog,val,\nv/d-e.mp4,,,test,\n',
    )
    first, second, third = read_manifest(table)
    assert first == Item(
        id="a_b", path=tmp_path / "v/a_b.mp4", caption="a, b", label="cat", split="train", events_s=(0.5, 1.0)
    )
    assert (second.caption, second.label, second.split, second.events_s) == ("dog", "dog", "val", None)
    assert (third.caption, third.label) == ("d e", "")


def test_tsv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    tsv = write(tmp_path / "m.tsv", "id\tpath\ttext\tsplit\n1\ta.wav\thello\ttrain\n")
    jsonl = write(tmp_path / "m.jsonl", '{"id": 1, "audio": "a.wav", "text": "hello", "split": "train"}\n\n')
    assert read_manifest(tsv) == read_manifest(jsonl)


def test_the_group_of_a_row_is_kept_in_every_table(tmp_path: Path) -> None:
    tables = [
        write(tmp_path / "m.csv", "file,split,Group_ID\na.wav,train,g 1\nb.wav,test,\n"),
        write(tmp_path / "m.tsv", "file\tsplit\tgroup_id\na.wav\ttrain\tg 1\nb.wav\ttest\t\n"),
        write(
            tmp_path / "m.jsonl",
            '{"file": "a.wav", "split": "train", "group_id": "g 1"}\n{"file": "b.wav", "split": "test"}\n',
        ),
    ]
    for table in tables:
        assert [item.group_id for item in read_manifest(table)] == ["g 1", ""]
    # A number in JSON is a name like any other.
    number = write(tmp_path / "n.jsonl", '{"file": "a.wav", "split": "train", "group_id": 7}\n')
    assert [item.group_id for item in read_manifest(number)] == ["7"]


def test_hash_splits_are_stable_by_group_and_about_80_10_10(tmp_path: Path) -> None:
    rows = [json.dumps({"file": f"{i}.wav", "group_id": f"g{i // 2}"}) for i in range(2000)]
    items = read_manifest(write(tmp_path / "m.jsonl", "\n".join(rows)))
    assert all(a.split == b.split for a, b in zip(items[::2], items[1::2], strict=True))
    counts = {name: sum(i.split == name for i in items) for name in ("train", "val", "test")}
    # 1000 groups: standard deviations are 2 x 12.6 and 2 x 9.5 items; five of them are allowed.
    assert abs(counts["train"] - 1600) < 130
    assert abs(counts["val"] - 200) < 95
    assert abs(counts["test"] - 200) < 95
    # A row's split does not depend on which other rows there are.
    some = read_manifest(write(tmp_path / "n.jsonl", "\n".join(rows[500:1500])))
    assert {i.id: i.split for i in some}.items() <= {i.id: i.split for i in items}.items()


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("salt", range(8))
def test_tiny_sets_have_training_and_test_items(tmp_path: Path, count: int, salt: int) -> None:
    rows = "".join(json.dumps({"file": f"{salt}-{i}.wav"}) + "\n" for i in range(count))
    splits = [i.split for i in read_manifest(write(tmp_path / "m.jsonl", rows))]
    assert {"train", "test"} <= set(splits)


def test_folder_of_tables_is_joined_and_other_tables_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "clips.csv", "id,file,caption,split\nv1,av/1.mp4,film,train\n")
    write(tmp_path / "captions.csv", "id,file,caption,class,split\ns1,audio/1.ogg,rain,rain,test\n")
    write(tmp_path / "licences.csv", "name,text\nx,y\n")
    assert [(i.id, i.path.name, i.label) for i in read_manifest(tmp_path)] == [
        ("s1", "1.ogg", "rain"),
        ("v1", "1.mp4", ""),
    ]


def test_folder_of_media_takes_words_from_names_and_sidecars(tmp_path: Path) -> None:
    for name in ("dog/bark_one.MP4", "dog/two.wav", "cat/miaow.flac", "loose.mp3", "notes.pdf", "dog/.hidden.mp4"):
        write(tmp_path / name, "")
    write(tmp_path / "dog/two.txt", "a dog\nbarks twice\n")
    items = {i.id: i for i in read_manifest(tmp_path)}
    assert sorted(items) == ["cat/miaow", "dog/bark_one", "dog/two", "loose"]
    assert (items["dog/bark_one"].caption, items["dog/bark_one"].label) == ("bark one", "dog")
    assert items["dog/two"].caption == "a dog barks twice"
    assert items["loose"].label == ""


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "m.csv",
            "clip,caption\na.mp4,x\n",
            r"row 1 has no file \| path \| video \| audio; the columns are: clip, caption",
        ),
        ("m.csv", "id,file\na,1.mp4\nb,2.mp4\na,3.mp4\n", "ids must be unique, these are not: a"),
        ("m.csv", "file,split\na.mp4,dev\n", "unknown split 'dev', use train, val, test"),
        ("m.csv", "file,events_s\na.mp4,soon\n", "events_s must be a JSON list of seconds, got 'soon'"),
        ("m.jsonl", '{"file": "a.mp4", "events_s": [-1.0]}', "events_s of 'a' must be finite and not negative"),
        ("m.csv", "", "holds no rows"),
        ("m.jsonl", '{"file": "a.mp4"}\n{oops\n', "line 2 is not JSON"),
        ("m.jsonl", "[1, 2]\n", "line 1 must be a JSON object, got list"),
        ("m.txt", "a.mp4", "a manifest must end in .jsonl, .csv, .tsv"),
    ],
)
def test_errors_say_what_is_wrong_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(write(tmp_path / name, text))
    assert "\n" not in str(caught.value)


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        read_manifest(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="neither a manifest nor media files"):
        read_manifest(tmp_path)
    (tmp_path / "m.csv").write_bytes(b"file,caption\na.mp4,\xff\xfe\n")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_manifest(tmp_path / "m.csv")


def test_an_item_checks_its_split() -> None:
    with pytest.raises(ValueError, match="must be one of train, val, test, got 'dev'"):
        Item(id="a", path=Path("a.mp4"), caption="", split="dev")  # type: ignore[arg-type]


def test_a_clip_without_words_can_be_said_in_json_alone(tmp_path: Path) -> None:
    """A cell of a table is empty either way; there the label or the name of the file gives the words."""
    rows = [{"file": "a_b.wav", "caption": "", "label": "dog"}, {"file": "c_d.wav"}, {"file": "e.wav", "caption": None}]
    table = write(tmp_path / "m.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [item.caption for item in read_manifest(table)] == ["", "c d", "e"]
    write_manifest(read_manifest(table), tmp_path / "again.jsonl")
    assert [item.caption for item in read_manifest(tmp_path / "again.jsonl")] == ["", "c d", "e"]
    cells = write(tmp_path / "m.csv", "file,caption,label\na_b.wav,,dog\n")
    assert [item.caption for item in read_manifest(cells)] == ["dog"]
