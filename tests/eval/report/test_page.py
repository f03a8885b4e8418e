"""The report page: every number, player and file it promises is there, and nothing points outside."""

import dataclasses
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from eval.compare.examples import spectrogram_png
from eval.compare.hygiene import TestFacts, write_facts
from eval.compare.rows import Row
from eval.report.blocks import Heading, Paragraph, inert, markdown
from eval.report.page import write_report
from eval.report.paper import write_paper
from eval.report.results import Results
from eval.speed.budget import STAGES, with_totals
from teacher.files.lines import append_lines
from teacher.media import write_audio
from tests.eval.report.comparison import page_of, three_models
from tests.eval.report.comparison import row as vta_row


@pytest.fixture
def three():
    return three_models()


NAMES = ("ground truth", "teacher, 25 steps", "teacher, 1 step", "student, 1 step")


def row(task, model, steps, seed, frechet):
    metrics = {"frechet": frechet, "kl": frechet / 10, "inception_score": 5 / (1 + frechet), "kad": frechet / 5}
    if task == "vta":
        metrics["onset_f1"] = 1 / (1 + frechet)
    return Row(
        task=task,
        model=model,
        steps=steps,
        seed=seed,
        nfe=steps * (2 if model == "teacher" else 1),
        guidance=4.5 if model == "teacher" else 1.0,
        metrics=metrics,
        rtf=with_totals(dict.fromkeys(STAGES, 0.01 * steps)) if steps else {},
        num_clips=32,
        config_digest="0123456789abcdef",
        run_id="demo",
        command="python -m scripts.compare --steps 1 25 <all>",
        machine={"device": "CPU test", "threads": "2"},
    )


@pytest.fixture
def folder(tmp_path):
    rows = []
    for task in ("vta", "tta"):
        for seed in (0, 1):
            rows += [row(task, "teacher", steps, seed, 40.0 / steps + seed) for steps in (1, 2, 4, 8, 25)]
            rows += [row(task, "student", steps, seed, 3.25 + seed) for steps in (1, 2)]
        rows += [row(task, "reference", 0, 0, 1.5), row(task, "codec", 0, 0, 2.1)]
    append_lines(tmp_path / "rows.jsonl", [r.to_json() for r in rows])
    examples = []
    for task, suffix in (("vta", ".mp4"), ("tta", ".wav")):
        entries = []
        for name in NAMES:
            stem = f"media/{task} {NAMES.index(name)}"
            wave = np.random.default_rng(0).normal(size=8000).astype(np.float32) * 0.1
            spectrogram_png(wave, 16_000, tmp_path / f"{stem}.png", [0.1, 0.3])
            if suffix == ".wav":
                write_audio(tmp_path / f"{stem}.wav", wave, 16_000)
            else:
                (tmp_path / f"{stem}.mp4").write_bytes(b"stands for a video; the page never opens it")
            entries.append({"name": name, "media": stem + suffix, "spectrogram": f"{stem}.png"})
        examples.append({"task": task, "id": f"{task}-7", "caption": 'a <b>thud</b> & a "ring"', "entries": entries})
    (tmp_path / "examples.json").write_text(json.dumps(examples))
    return tmp_path


class Page(HTMLParser):
    """Collects tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_has_every_player_and_every_file_exists(folder):
    page = Page(write_report(Results.read(folder / "rows.jsonl")).read_text())
    assert len(page.named("video")) == len(NAMES)
    assert len(page.named("audio")) == len(NAMES)
    assert len(page.named("img")) == 2 * len(NAMES)
    for tag in ("video", "audio", "img"):
        for attributes in page.named(tag):
            assert (folder / attributes["src"].replace("%20", " ")).is_file()
    assert all("controls" in attributes for attributes in page.named("video") + page.named("audio"))


def test_page_needs_nothing_from_outside(folder):
    text = write_report(Results.read(folder / "rows.jsonl")).read_text()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", text)
    assert not Page(text).named("link")
    assert str(folder) not in text


def test_text_from_outside_is_escaped(folder):
    text = write_report(Results.read(folder / "rows.jsonl")).read_text()
    assert "<b>thud" not in text
    assert "a &lt;b&gt;thud&lt;/b&gt; &amp; a &#34;ring&#34;" in text
    assert "--steps 1 25 &lt;all&gt;" in text


def test_page_tells_numbers_directions_origin_and_the_limits_of_the_metrics(folder):
    text = write_report(Results.read(folder / "rows.jsonl")).read_text()
    for part in ("Video to audio", "Text to audio", "FD (embedded) ↓", "IS (embedded) ↑", "Onset F1 ↑", "NFE"):
        assert part in text
    assert "not comparable with published figures" in text
    assert "0123456789ab" in text
    assert "CPU test" in text
    assert "Fréchet distance between" in text
    for stage in STAGES:
        assert stage in text


def test_both_tables_hold_means_deviations_and_the_best_in_bold(folder):
    page = write_report(Results.read(folder / "rows.jsonl"))
    markdown = (folder / "results.md").read_text()
    # Student, seeds 0 and 1: 3.25 and 4.25, mean 3.75, deviation 0.71. Teacher with 25 steps: 1.6 and 2.6, the best.
    assert re.search(r"\| Student \| 1 \| 1 \| 3\.75 ± 0\.71 \|", markdown)
    assert re.search(r"\| Teacher \| 25 \| 50 \| \*\*2\.10\*\* ± 0\.71 \|", markdown)
    assert re.search(r"\| Real sound \| – \| – \| 1\.50 \|", markdown)  # lower, yet never the best of the generated
    assert re.search(r"\| Codec round trip \| – \| – \| 2\.10 \|", markdown)  # equal to the best, yet not generated
    # Higher is better: teacher with 25 steps, (5/2.6 + 5/3.6) / 2 = 1.656, deviation 0.534 / sqrt(2) = 0.378.
    assert markdown.count("| **1.66** ± 0.38 |") == 2
    text = page.read_text()
    assert '<td>3.75<span class="spread"> ± 0.71</span></td>' in text
    assert '<td class="best">2.10<span class="spread"> ± 0.71</span></td>' in text
    assert "Onset" not in markdown.split("## Text to audio")[1].split("## How to read it")[0]


def test_charts_show_steps_evaluations_and_time_with_floor_and_ceiling(folder):
    text = write_report(Results.read(folder / "rows.jsonl")).read_text()
    # Five scores for video (FD, KAD, KL, IS, onsets), four for text, each against steps, evaluations and time.
    assert text.count('<svg class="chart"') == 3 * (5 + 4)
    # Real sound and the codec round trip: each level is a line across, and a piece of it beside its name.
    assert text.count('class="level"') == 2 * 2 * 3 * (5 + 4)
    charts = re.findall(r'<svg class="chart".*?</svg>', text)
    assert {chart.count('class="point"') for chart in charts} == {5 + 2}
    assert {chart.count('class="bar"') for chart in charts} == {3 * (5 + 2)}  # a line and its two ends
    assert "bars: ± 1 sd over seeds" in text  # these rows have no intervals
    assert "bars: 95 % interval" not in text
    assert text.count("Charts of KAD (embedded)") == 2  # folded away, as FD is of the same aspect


def test_page_without_examples_has_no_players(folder):
    (folder / "examples.json").unlink()
    assert not Page(write_report(Results.read(folder / "rows.jsonl")).read_text()).named("video")


def test_mixed_configurations_are_pointed_out(folder):
    changed = json.loads(row("vta", "student", 1, 0, 3.25).to_json()) | {"config_digest": "another"}
    append_lines(folder / "rows.jsonl", [json.dumps(changed)])
    assert (
        "several configurations are mixed for Student, VTA;"
        in write_report(Results.read(folder / "rows.jsonl")).read_text()
    )


def test_guidance_scales_are_not_mixed_configurations(folder):
    changed = json.loads(row("vta", "student", 1, 0, 3.25).to_json()) | {"config_digest": "another", "guidance": 1.4}
    append_lines(folder / "rows.jsonl", [json.dumps(changed)])
    text = write_report(Results.read(folder / "rows.jsonl")).read_text()
    assert "are mixed" not in text
    assert "Student, guidance 1.4" in text


def test_a_page_with_a_single_row_of_an_older_version(tmp_path):
    """No estimates, no clips.jsonl, one model, one seed: everything that can be told is, nothing fails."""
    append_lines(tmp_path / "rows.jsonl", [row("vta", "student", 1, 0, 3.25).to_json()])
    text = write_report(Results.read(tmp_path / "rows.jsonl")).read_text()
    markdown = (tmp_path / "results.md").read_text()
    assert "<td>3.25</td>" in text
    assert "before intervals and bias were recorded" in text
    assert "before intervals and bias were recorded" in markdown
    assert "no bars" in text
    assert "Students against the teacher" not in text
    assert "**3.25**" not in markdown  # best of one is no news


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"media": "media/absent.mp4"}, "does not exist"),
        ({"media": "../secret.wav"}, "must be a path inside"),
        ({"media": "media/x.exe"}, "must end in one of"),
        ({"loud": True}, "an entry has the fields"),
    ],
)
def test_bad_examples_are_refused_by_number(folder, change, message):
    examples = json.loads((folder / "examples.json").read_text())
    examples[1]["entries"][0] |= change
    (folder / "examples.json").write_text(json.dumps(examples))
    with pytest.raises(ValueError, match=f"example 2.*{message}"):
        write_report(Results.read(folder / "rows.jsonl"))


def test_no_rows_and_no_file_are_different_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent/rows\.jsonl does not exist"):
        Results.read(tmp_path / "absent" / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no rows of results; run the comparison first"):
        Results.read(tmp_path / "rows.jsonl")


def test_how_to_read_real_sound_and_a_negative_kernel_distance(folder):
    page = write_report(Results.read(folder / "rows.jsonl")).read_text()
    for text in (page.split('id="reading"')[1], (folder / "results.md").read_text().split("## How to read it")[1]):
        assert "so real sound may stand above the codec" in text
        assert "may come out negative" in text


def test_names_from_outside_are_escaped(tmp_path, three):
    rows = [dataclasses.replace(r, model="<i>x|y</i>" if r.model == "tiny" else r.model) for r in three]
    rows = [dataclasses.replace(r, metrics=dict(r.metrics) | {"<b>new": 1.0}) for r in rows]
    page, markdown = page_of(tmp_path, rows)
    assert "<i>x" not in page
    assert "<b>new" not in page
    assert "<i>x|y</i>, 1 step, against" in unescape(page)
    assert "| &lt;i>x\\|y&lt;/i> | 1 |" in markdown


def test_excluded_clips_are_listed_with_their_reason(tmp_path):
    fact = TestFacts(task="vta", ids=("a", "b"), excluded=(("lost", "no such <file>"),))
    write_facts(tmp_path, [fact])
    page, markdown = page_of(tmp_path, [vta_row()])
    assert "Ids of the 2 clips</summary>" in page
    assert "<pre>a b</pre>" in page
    assert "Excluded for every model: 1" in page
    assert "lost: no such &lt;file&gt;" in page
    assert fact.digest in page
    assert fact.digest in markdown


HOSTILE = "<script>alert(1)</script><img src=x>|`x`![p](http://h/p.png) [l](javascript:x)\n\n[d]: http://h\n# head"


def test_names_from_outside_are_words_in_markdown(tmp_path, three):
    rows = [dataclasses.replace(r, model=HOSTILE, command=HOSTILE) if r.kind == "student" else r for r in three]
    rows = [dataclasses.replace(r, metrics=dict(r.metrics) | {HOSTILE: 1.0}) for r in rows]
    append_lines(tmp_path / "rows.jsonl", [r.to_json() for r in rows])
    write_report(Results.read(tmp_path / "rows.jsonl"))
    write_paper(Results.read(tmp_path / "rows.jsonl"))
    for name in ("results.md", "paper.md"):
        text = (tmp_path / name).read_text()
        assert "alert(1)" in text
        for part in ("<script", "<img", "![p](", "[l](", "\n[d]:", "\n# head", " `x`"):
            assert part not in text, (name, part)
        shown = [line for line in text.splitlines() if line.startswith("| ") and "alert" in line]
        assert shown


def test_our_own_markdown_stays():
    assert inert("**bold** and 1 < 2") == "**bold** and 1 &lt; 2"
    assert markdown([Heading(text="a", level=2), Paragraph("b\nc")]) == "## a\n\nb c"
