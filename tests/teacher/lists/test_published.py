"""List files of known data sets: every form, the file that belongs to a row, and the one-line errors."""

import json
from pathlib import Path

import pytest

from teacher.lists.greatest_hits import read_hits
from teacher.lists.published import listed_ids, read_list


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rows(listed) -> list[tuple[str, str, str, str]]:
    return [(item.id, item.path.name, item.caption, item.split) for item in listed.items]


def test_vggsound_csv_names_its_files_by_id_and_second(tmp_path):
    media = put(tmp_path / "video", "abc_000030.mp4", "-x_y_000007.mp4")
    text = '"abc",30,"dog barking, howling",train\n-x_y,7,rain,test\ngone,12,wind,test\n'
    listed = read_list("vggsound", write(tmp_path / "vggsound.csv", text), media)
    assert rows(listed) == [
        ("abc_000030", "abc_000030.mp4", "dog barking, howling", "train"),
        ("-x_y_000007", "-x_y_000007.mp4", "rain", "test"),
    ]
    assert listed.items[0].label == "dog barking, howling"
    assert listed.missing == ["gone_000012"]
    assert str(listed) == "2 of 3 listed items have a file; missing: gone_000012"
    named = write(tmp_path / "named.csv", "id,sec,caption,split\n" + text)
    assert rows(read_list("vggsound", named, media)) == rows(listed)
    assert [item.split for item in read_list("vggsound", named, media, "test").items] == ["test"]


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("vgg-train.tsv", None, "train"),
        ("vgg-val.tsv", None, "val"),
        ("vgg-test.tsv", None, "test"),
        ("mine.tsv", None, "train"),
        ("vgg-train.tsv", "test", "test"),
    ],
)
def test_vggsound_tsv_takes_its_split_from_its_name_or_the_argument(tmp_path, name, split, expected):
    media = put(tmp_path / "video", "a_000001.mp4")
    path = write(tmp_path / name, "id\tlabel\na_000001\tchild speech\n")
    assert rows(read_list("vggsound-tsv", path, media, split)) == [
        ("a_000001", "a_000001.mp4", "child speech", expected)
    ]


def test_audiocaps_in_both_forms(tmp_path):
    media = put(tmp_path / "sound", "yt1_30.wav", "yt2_000040.flac", "yt3.wav", "104.ogg", "Yname.wav")
    listed = read_list(
        "audiocaps",
        write(
            tmp_path / "val.csv",
            "audiocap_id,youtube_id,start_time,caption\n"
            '101,yt1,30,"A man speaks, then laughs"\n102,yt2,40,Rain\n103,yt3,0,Wind\n104,yt4,5,Birds\n105,yt5,5,x\n',
        ),
        media,
    )
    assert rows(listed) == [
        ("101", "yt1_30.wav", "A man speaks, then laughs", "val"),
        ("102", "yt2_000040.flac", "Rain", "val"),
        ("103", "yt3.wav", "Wind", "val"),
        ("104", "104.ogg", "Birds", "val"),
    ]
    assert listed.missing == ["105"]
    short = write(tmp_path / "AudioCaps_audioldm_data.csv", "name,caption\nYname,A bell\n")
    assert rows(read_list("audiocaps", short, media, "test")) == [("Yname", "Yname.wav", "A bell", "test")]


def test_clotho_gives_an_item_for_every_caption(tmp_path):
    media = put(tmp_path / "sound", "Door (1).wav", "b.flac", "b.wav")
    header = "file_name," + ",".join(f"caption_{k}" for k in range(1, 6))
    path = write(tmp_path / "clotho_captions_development.csv", f"{header}\nDoor (1).wav,a,b,c,d,e\nb.wav,f,g,,,\n")
    listed = read_list("clotho", path, media)
    assert [item.id for item in listed.items] == [f"Door (1)#{k}" for k in range(1, 6)] + ["b#1", "b#2"]
    assert [item.caption for item in listed.items] == list("abcdefg")
    assert {item.path.name for item in listed.items} == {"Door (1).wav", "b.flac"}  # lossless before the listed .wav
    assert {item.split for item in listed.items} == {"train"}


def test_wavcaps_json(tmp_path):
    media = put(tmp_path / "sound", "AudioSet_SL/Ya-b.wav", "FreeSound/123.flac")
    data = [
        {"id": "Ya-b.wav", "caption": "A frog croaks.", "duration": 10.0, "audio": "x"},
        {"id": "123", "caption": "Steps on gravel.", "duration": 31.5},
        {"id": "124", "caption": "Gone."},
    ]
    path = write(tmp_path / "as_final.json", json.dumps({"num_captions_per_audio": 1, "data": data}))
    listed = read_list("wavcaps", path, media)
    assert rows(listed) == [
        ("Ya-b", "Ya-b.wav", "A frog croaks.", "train"),
        ("123", "123.flac", "Steps on gravel.", "train"),
    ]
    assert listed.missing == ["124"]


HITS = """2.677438 ceramic hit static
3.675198 ceramic hit static
4.1 wood scratch deform
5.5 None None None
5.0 None hit None
"""


def test_greatest_hits_takes_events_and_words_from_the_times_of_a_video(tmp_path):
    first, second, third = "2015-02-16-16-49-06", "2015-09-29-15-44-54-838", "2015-09-29-15-44-54-57"
    media = put(tmp_path / "vis-data", f"{first}_denoised.mp4", f"{first}_mic.mp4", f"{second}_mic.mp4", f"{third}.mp4")
    write(media / f"{first}_times.txt", HITS)
    write(media / f"{second}_times.txt", "1.5 None None None\n")
    path = write(media / "test.txt", f"{first}\n{second}\n{third}\n\n2015-02-16-17-52-15\n")
    listed = read_list("greatest-hits", path, media)
    assert listed.missing == ["2015-02-16-17-52-15"]
    plain = "hitting and scratching with a drumstick"
    assert rows(listed) == [
        (first, f"{first}_denoised.mp4", "hitting ceramic, hitting, scratching wood", "test"),
        (second, f"{second}_mic.mp4", plain, "test"),
        (third, f"{third}.mp4", plain, "test"),
    ]
    # Unknown words leave the event; a video without a list of times leaves its events unknown.
    assert [item.events_s for item in listed.items] == [(2.677438, 3.675198, 4.1, 5.0, 5.5), (1.5,), None]
    assert [item.label for item in listed.items] == ["ceramic", "", ""]
    assert [item.group_id for item in listed.items] == [first, "2015-09-29-15-44-54", "2015-09-29-15-44-54"]


def test_greatest_hits_lists_may_be_json_name_files_and_lie_elsewhere(tmp_path):
    name = "2015-03-25-00-58-22"
    media = put(tmp_path / "media", f"video/{name}_denoised.mp4", f"video/{name}_mic.mp4")
    (media / "times").mkdir()
    write(media / "times" / f"{name}_times.txt", "0.5 metal hit static\n")
    path = write(tmp_path / "greatesthit_video_valid.json", json.dumps([name]))
    (item,) = read_list("greatest-hits", path, media).items
    assert (item.path.name, item.split, item.events_s) == (f"{name}_denoised.mp4", "val", (0.5,))
    named = write(tmp_path / "mine.txt", f"{name}_mic.mp4\n")
    (item,) = read_list("greatest-hits", named, media, "test").items
    assert (item.id, item.path.name, item.split) == (name, f"{name}_mic.mp4", "test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5 wood\nsoon wood hit\n", "line 2 must begin with seconds, got 'soon wood hit'"),
        ("-1 wood hit static\n", "line 1 must begin with seconds"),
        ("nan wood hit static\n", "line 1 must begin with seconds"),
    ],
)
def test_times_that_are_none_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_hits(write(tmp_path / "2015-03-25-00-58-22_times.txt", text))


def test_items_of_one_sound_share_a_group(tmp_path):
    media = put(tmp_path / "m", "yt1_30.wav", "yt1_40.wav", "a.wav", "abc_000030.mp4")
    header = "audiocap_id,youtube_id,start_time,caption\n"
    caps = write(tmp_path / "caps.csv", f"{header}1,yt1,30,x\n2,yt1,30,y\n3,yt1,40,z\n")
    assert [item.group_id for item in read_list("audiocaps", caps, media).items] == ["yt1"] * 3
    clotho = write(tmp_path / "clotho.csv", "file_name,caption_1,caption_2\na.wav,x,y\n")
    assert [item.group_id for item in read_list("clotho", clotho, media).items] == ["a", "a"]
    vgg = write(tmp_path / "vgg.csv", "abc,30,dog,train\n")
    assert [item.group_id for item in read_list("vggsound", vgg, media).items] == [""]  # the id names the video


def test_ids_are_listed_without_media(tmp_path):
    path = write(tmp_path / "v.csv", "abc,30,dog,train\nabc,7,rain,test\n")
    assert listed_ids("vggsound", path) == ("abc_000030", "abc_000007")
    assert listed_ids("vggsound", path, "test") == ("abc_000007",)
    with pytest.raises(ValueError, match="holds no rows of split val"):
        listed_ids("vggsound", path, "val")


def test_tab_separated_captions_may_hold_quotation_marks(tmp_path):
    media = put(tmp_path / "m", "one.flac", "one.wav", "two.mp3", "three.mp4", "three.wav")
    path = write(tmp_path / "t.tsv", 'caption\tid\na 5" nail\tone\n"hello" says a man\ttwo.mp3\nboth\tthree\n')
    assert rows(read_list("tsv", path, media)) == [
        ("one", "one.flac", 'a 5" nail', "train"),
        ("two.mp3", "two.mp3", '"hello" says a man', "train"),
        ("three", "three.mp4", "both", "train"),
    ]


def test_files_may_lie_in_folders_of_which_the_outermost_counts(tmp_path):
    media = put(tmp_path / "m", "deep/down/a.wav", "a.wav", "part1/b.wav", "part2/b.wav")
    path = write(tmp_path / "t.tsv", "id\tcaption\na\tx\npart2/b\ty\n")
    found = [item.path.relative_to(media).as_posix() for item in read_list("tsv", path, media).items]
    assert found == ["a.wav", "part2/b.wav"]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("vggsound", "a,b,c\n", "row 1 must be id, seconds, caption, split, got 'a,b,c'"),
        ("vggsound", "a,12,dog,dev\n", "row 1: unknown split 'dev'"),
        ("vggsound-tsv", "id\tcaption\na\tb\n", "has no column label; its columns are: id, caption"),
        ("tsv", "id\tlabel\na\tb\n", "has no column caption; its columns are: id, label"),
        ("tsv", "id\tcaption\na\t\n", "row 1 has no caption"),
        ("tsv", "id\tcaption\na\tx\na\ty\n", "ids must be unique, these are not: a"),
        ("tsv", "id\tcaption\n", "holds no rows"),
        ("tsv", "", "is empty"),
        (
            "tsv",
            "id\tcaption\nz\tx\n",
            "none of the 1 files listed in list is there; the first would be z with",
        ),
        ("audiocaps", "youtube_id,caption\na,b\n", "has no column audiocap_id and start_time"),
        (
            "audiocaps",
            "audiocap_id,youtube_id,start_time,caption\n1,a,soon,b\n",
            "start_time must be seconds, got 'soon'",
        ),
        ("audiocaps", "file,caption\na,b\n", "has no column name"),
        ("clotho", "name,caption\na,b\n", "has no column file_name and caption_1"),
        ("wavcaps", "[1]", 'must be JSON of the form {"data"'),
        ("wavcaps", '{"data": [{"id": "a"}]}', "KeyError"),
        (
            "gigaspeech",
            "",
            "list kind must be one of vggsound, vggsound-tsv, audiocaps, clotho, wavcaps, tsv, greatest-hits",
        ),
        ("greatest-hits", "2015-02-16\n", "row 1 must be a video such as 2015-02-16-16-49-06, got '2015-02-16'"),
        ("greatest-hits", "2015-02-16-16-49-06_19844\n", "row 1 must be a video such as"),
        ("greatest-hits", "2015-02-16-16-49-06\n2015-02-16-16-49-06_mic\n", "ids must be unique"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, kind, text, message):
    media = put(tmp_path / "m", "a.wav")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - looked at below
        read_list(kind, write(tmp_path / "list", text), media)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="none: no such folder of media files"):
        read_list("tsv", tmp_path / "list.tsv", tmp_path / "none")
    with pytest.raises(ValueError, match=r"list\.tsv: cannot be read: No such file"):
        read_list("tsv", tmp_path / "list.tsv", tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'dev'"):
        read_list("tsv", tmp_path / "list.tsv", tmp_path, "dev")  # type: ignore[arg-type]
