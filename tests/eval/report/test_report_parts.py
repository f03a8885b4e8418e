"""What the page says beyond the main table: every score, intervals and bias, differences, several models, budgets."""

import dataclasses
import re
from html import unescape

import pytest

from eval.compare.hygiene import TestFacts, write_facts
from eval.compare.rows import Row, json_line
from eval.metrics import METRICS, metric, metrics_of
from eval.metrics.uncertainty import Estimate
from eval.report.budgets import read_budgets
from eval.report.charts import DASHES, MARKERS, Level, Point, Series, axes, charts, line_chart, round_values, styles
from eval.report.differences import pairs, strongest
from eval.report.intervals import span
from eval.report.paired import settings
from eval.report.paper import write_paper
from eval.report.tables import inert, paragraphs
from eval.report.write import write_report
from eval.speed.budget import STAGES, Budget, Machine, Roofline, Setting, StageBudget, StageCost, Timing, with_totals
from teacher.files.lines import append_lines

EVERY = (
    *(m.key for m in METRICS if m.key not in ("motion", "distance_clips")),
    *(f"{m.key}{suffix}" for m in METRICS if m.aspect == "clarity" for suffix in ("_std", "_splits")),
    *(f"{m.key}_error" for m in METRICS if m.costly),
)
"""Keys that a row can have."""


def estimate(value, *, replicates=(), bias=0.25):
    return Estimate(low=value - 3.5, high=value + 4.25, level=0.95, bias=bias, count=17, method="a jackknife",
                    bias_method="a closed form", replicates=replicates)  # fmt: skip


def row(model="teacher", steps=25, seed=0, *, kind=None, guidance=1.4, metrics=None, **changes):
    values = {
        "task": "vta",
        "model": model,
        "steps": steps,
        "seed": seed,
        "nfe": 2 * steps,
        "guidance": guidance,
        "metrics": {"frechet": 10.0} if metrics is None else metrics,
        "rtf": with_totals(dict.fromkeys(STAGES, 0.01 * steps)) if steps else {},
        "num_clips": 4,
        "config_digest": f"{model}{guidance}",
        "run_id": "r",
        "command": "c",
        "duration_s": 8.0,
        "clips_digest": "same",
        "kind": kind,
    }
    return Row(**(values | changes))


def page_of(folder, rows):
    append_lines(folder / "rows.jsonl", [r.to_json() for r in rows])
    page = write_report(folder / "rows.jsonl").read_text()
    return page, (folder / "results.md").read_text()


def grouped(model, steps, value, replicates, **more):
    """A row of a corpus score with the same clips and groups as every other."""
    return row(model, steps, metrics={"frechet": value}, estimates={"frechet": estimate(value, replicates=replicates)},
               **more)  # fmt: skip


@pytest.fixture
def three():
    """A teacher with two scales, two students, one of them with two scales; distances by group of clips."""
    rows = [grouped("teacher", steps, value, (value - 1, value, value + 1)) for steps, value in ((1, 40.0), (25, 5.0))]
    rows += [grouped("teacher", 25, 8.0, (7.0, 8.0, 9.0), guidance=4.5)]
    rows += [grouped("student", 1, 6.0, (5.0, 6.5, 6.5)), grouped("student", 2, 5.5, (4.5, 5.5, 6.5))]
    rows += [grouped("student", 1, 7.0, (6.0, 7.0, 8.0), guidance=1.0)]
    rows += [grouped("tiny", 1, 50.0, (48.0, 50.0, 51.0), kind="student"), grouped("reference", 0, 1.0, (1.0, 2.0))]
    return rows


def test_every_score_has_words_and_a_place():
    assert (metric("onset_clips").label, metric("frechet_bias").label) == ("Onset clips", "FD (embedded), bias")
    assert metric("is_passt_splits").label == "IS (PaSST), parts"
    assert (metric("fd_vggish_inf_error").better, metric("fd_vggish_inf").better) == (None, "lower")
    assert (metric("new_score").label, metric("new_score").better) == ("new_score", None)
    order = [m.key for m in metrics_of(["other", "onset_f1", "precision", "frechet", "desync", "desync_clips", "kad"])]
    assert order == ["desync", "desync_clips", "frechet", "kad", "onset_f1", "precision", "other"]


def test_no_score_of_a_row_is_dropped_from_page_or_table(tmp_path):
    metrics = {key: 1.0 + k / 7 for k, key in enumerate((*EVERY, "a_new_score"))}
    page, markdown = page_of(tmp_path, [row(metrics=metrics), row("student", 1, metrics=metrics)])
    for key, value in metrics.items():
        text = metric(key)
        assert text.title.replace(" ↑", "&nbsp;↑").replace(" ↓", "&nbsp;↓") in page
        assert text.title in markdown
        assert f"<td>{value:.{text.digits}f}</td>" in page
    main = markdown.split("### More scores")[0]
    assert "FD (PaSST) ↓ | FD (PANNs) ↓ | FD (VGGish) ↓ | KL (PANNs) ↓ | KL (PaSST) ↓ | IS (PANNs) ↑" in main
    assert main.index("CLAP (MS)") < main.index("FD (embedded)") < main.index("Onset F1")
    assert "can be placed beside published figures only" in page


def test_an_interval_on_the_page_is_that_of_the_row(tmp_path):
    rows = [row(seed=s, metrics={"kl": v}, estimates={"kl": estimate(v)}) for s, v in ((0, 10.0), (1, 20.0))]
    page, markdown = page_of(tmp_path, [*rows, row("student", 1, metrics={"kl": 3.0})])
    # Mean over seeds: 15 with [(6.5 + 16.5) / 2, (14.25 + 24.25) / 2] and the bias of both; the student has none.
    for text in ("<td>[11.500, 19.250]</td>", "<td>0.250</td>", "<td>14.750</td>", "<td>17</td>"):
        assert text in page
    assert "| Teacher | 25 | 15.000 | [11.500, 19.250] | 0.250 | 14.750 | 17 |" in markdown
    assert markdown.count("Interval by a jackknife; bias: a closed form.") == 1
    assert markdown.split("### Intervals and bias")[1].split("###")[0].count("\n| ") == 2  # titles, teacher
    both = settings(rows, {})[0]
    assert (span(both, "kl").low, span(both, "absent")) == (11.5, None)


def test_an_interval_that_one_seed_lacks_is_not_shown():
    rows = [row(metrics={"kl": 1.0}, estimates={"kl": estimate(1.0)}), row(seed=1, metrics={"kl": 2.0})]
    assert span(settings(rows, {})[0], "kl") is None


def test_a_score_that_one_seed_lacks_is_named(tmp_path):
    rows = [row(metrics={"kl": 1.0, "pam": 0.5}), row(seed=1, metrics={"kl": 2.0})]
    for text in page_of(tmp_path, rows):
        assert "therefore without a mean: Teacher, 25 steps: PAM." in text


def test_students_meet_the_teacher_at_its_best_scale_and_at_their_own_steps(three):
    found = pairs(settings(three, {}))
    assert [pair.title for pair in found] == [
        "Student, guidance 1, 1 step, against Teacher, guidance 1.4, 25 steps",  # no teacher at 1: its best scale
        "Student, guidance 1, 1 step, against Teacher, guidance 1.4, 1 step",
        "Student, guidance 1.4, 1 step, against Teacher, guidance 1.4, 25 steps",
        "Student, guidance 1.4, 1 step, against Teacher, guidance 1.4, 1 step",
        "tiny, 1 step, against Teacher, guidance 1.4, 25 steps",
        "tiny, 1 step, against Teacher, guidance 1.4, 1 step",
        "Student, guidance 1.4, 2 steps, against Teacher, guidance 1.4, 25 steps",
    ]
    higher = [dataclasses.replace(r, metrics={"is_panns": r.metrics["frechet"]}) for r in three]
    assert strongest(settings(higher, {})).summary.guidance == 4.5  # higher is better: 8 beats 5
    assert pairs(settings([r for r in three if r.model != "teacher"], {})) == []


def test_verdicts_follow_direction_and_interval(three):
    lines = {pair.title: pair.lines[0] for pair in pairs(settings(three, {}))}
    one = "Student, guidance 1.4, 1 step, against Teacher, guidance 1.4, "
    # 6 - 5 = 1; differences by group 1, 1.5, 0.5: error sqrt(2 x 1/6) = 0.577, t of two degrees 4.30, so 1 -+ 2.48.
    assert lines[f"{one}25 steps"].found.low == pytest.approx(1 - 4.3027 * (1 / 3) ** 0.5, abs=1e-3)
    assert lines[f"{one}25 steps"].verdict == "not told apart"
    assert lines[f"{one}1 step"].verdict == "better"  # 6 against 40, lower is better
    assert lines["tiny, 1 step, against Teacher, guidance 1.4, 25 steps"].verdict == "worse"


def test_seeds_alone_never_make_a_clear_difference():
    rows = [row(seed=s, metrics={"precision": 0.5}) for s in (0, 1)]
    rows += [row("student", 1, seed=s, metrics={"precision": 0.75}) for s in (0, 1)]
    (pair,) = pairs(settings(rows, {}))
    assert (pair.lines[0].found.low, pair.lines[0].found.high) == (0.25, 0.25)
    assert pair.told == "1 with no interval over clips"


def test_a_difference_over_clips_stands_on_the_page_with_its_p_value(tmp_path):
    rows = [row(metrics={"kl": 2.0}, num_clips=6), row("student", 1, metrics={"kl": 3.0}, num_clips=6)]
    lines = [
        json_line({"task": "vta", "model": r.model, "steps": r.steps, "seed": 0, "config_digest": r.config_digest,
                   "id": f"c{k}", "kl": r.metrics["kl"] + 0.01 * k * (r.model == "student")})
        for r in rows for k in range(6)
    ]  # fmt: skip
    append_lines(tmp_path / "clips.jsonl", lines)
    page, markdown = page_of(tmp_path, rows)
    # Six differences of one sign: two of 2^6 sign patterns are as extreme, p = 0.03125.
    assert re.search(r"\| KL \(embedded\) ↓ \| \+1\.000 \| \[\+\d\.\d+, \+\d\.\d+\] \| 0\.031 \| clips \|", markdown)
    assert "▼ worse" in page
    assert "Student, 1 step, against Teacher, 25 steps: 1 clearly worse" in page


def test_lines_differ_without_colour_and_bars_are_the_intervals(three):
    chosen = settings(three, {})
    made = [s for s in chosen if s.summary.steps]
    names = styles(made)
    assert list(names) == ["Teacher, guidance 1.4", "Teacher, guidance 4.5", "Student, guidance 1",
                           "Student, guidance 1.4", "tiny"]  # fmt: skip
    drawn = {(DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]) for _, number in names.values()}
    assert len(drawn) == 5
    assert len({style for style, _ in names.values()}) == 5
    text = charts(chosen, "vta")
    legend = text.split('<div class="charts">')[0]
    assert all(name in legend for name in names)
    assert text.count("bars: 95 % interval") == 3
    assert "Teacher, guidance 1.4, 1: 40, 36.5 to 44.25" in text


def test_time_is_the_total_of_the_task_times_the_duration(three):
    last = axes(settings(three, {}), "vta")[-1]
    assert last.label == "wall time per clip (s), video-to-audio"
    student = next(s for s in settings(three, {}) if s.summary.model == "tiny")
    assert last.of(student) == pytest.approx(0.01 * 6 * 8.0)  # six stages of 0.01, 8 s
    text = axes(settings([dataclasses.replace(r, duration_s=None) for r in three], {}), "tta")[-1]
    assert text.label == "real-time factor, text-to-audio"
    assert text.of(student) == pytest.approx(0.03)


def test_a_chart_places_points_bars_and_levels():
    points = (Point(x=1.0, y=5.0, low=0.0, high=10.0), Point(x=10.0, y=5.0), Point(x=100.0, y=2.5))
    series = Series(label="<a>", style="teacher v0", number=1, points=points)
    text = line_chart([series], [Level(label="floor", value=0.0)], x_label="steps", y_label="y")
    places = [tuple(map(float, p.split(","))) for p in re.search(r'polyline points="([^"]+)"', text)[1].split()]
    # A logarithmic axis: the middle one is half way; 2.5 of 10 is three quarters down, 5 half way.
    assert places[1][0] == pytest.approx((places[0][0] + places[2][0]) / 2, abs=0.1)
    ends = [float(y) for y in re.search(r'class="bar" x1="[^"]+" x2="[^"]+" y1="([^"]+)" y2="([^"]+)"', text).groups()]
    assert places[0][1] == pytest.approx(sum(ends) / 2, abs=0.1)
    assert places[2][1] - ends[1] == pytest.approx(0.75 * (ends[0] - ends[1]), abs=0.2)
    assert "<a>" not in text
    assert text.count("<polygon") == 3  # the second marker is a square
    with pytest.raises(ValueError, match="positive x"):
        line_chart([Series(label="a", style="", number=0, points=(Point(x=0.0, y=1.0),))], [], x_label="", y_label="")


def test_round_values_lie_between_the_ends():
    assert round_values(0.1, 30.0) == [0.1, 1.0, 10.0]
    assert round_values(0.3, 24.0) == [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
    assert round_values(0.157, 0.33) == [0.2, 0.3]
    assert round_values(1.0, 1.0) == [1.0]
    assert len(round_values(1e-3, 1e9)) <= 7


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
    page, markdown = page_of(tmp_path, [row()])
    assert "Excluded for every model: 1" in page
    assert "lost: no such &lt;file&gt;" in page
    assert fact.digest in page
    assert fact.digest in markdown


def budget(name):
    def stage(title, seconds, batch=1, setting=None):
        cost = None if title == "decode+resize" else StageCost(flops=4 * 10**9, bytes=1, traffic=2, operators=3)
        timing = Timing(median_s=seconds, p10_s=seconds / 2, p90_s=2 * seconds, repeats=5)
        return StageBudget(stage=title, batch=batch, dtype="float32", timing=timing, cost=cost, setting=setting,
                           evaluations=2 if setting else None)  # fmt: skip

    one = Setting(steps=1, guidance=1.4)
    stages = [stage(title, 0.25, setting=one if title == "flow network" else None) for title in STAGES]
    stages.append(stage("flow network", 0.5, batch=8, setting=one))
    return Budget(
        name=name, duration_s=8.0, command="", cuda=None, tf32="none", compiled=False, attention=(),
        machine=Machine(device="here", torch_version="2", threads=1, dtype="float32"), stages=tuple(stages),
        rooflines=(Roofline(flops_per_s=8e10, bytes_per_s=1e10, dtype="float32", device="here"),),
    )  # fmt: skip


def test_budgets_beside_the_rows_are_shown_per_model(tmp_path):
    budget("x").write(tmp_path / "budget-teacher-vta.json")
    budget("y").write(tmp_path / "budget-gone-vta.json")
    page, markdown = page_of(tmp_path, [row(), row("student", 1)])
    assert page.count("<summary>Staged budget of") == 1
    for text in (page, markdown):
        assert "125–500" in text  # p10 and p90 in ms
        assert "20 %" in text  # 4 GFLOP at 80 GFLOP/s take 50 ms of 250
        assert "from the video file to the wave" in text
        assert "throughput, 8 clips of 8 s" in text
        for total in ("generator only", "text-to-audio", "video-to-audio"):
            assert total in text
    assert "gone" not in page
    (tmp_path / "budget-teacher-vta.json").write_text("{}")
    with pytest.raises(ValueError, match=r"budget-teacher-vta\.json: not a budget"):
        write_report(tmp_path / "rows.jsonl")


def test_budgets_are_found_by_the_name_their_file_can_bear(tmp_path):
    from eval.compare.rows import safe_name

    budget("x").write(tmp_path / f"budget-{safe_name('a b/c')}-tta.json")
    assert [(kept.model, kept.task) for kept in read_budgets(tmp_path, ["teacher", "a b/c"])] == [("a b/c", "tta")]


HOSTILE = "<script>alert(1)</script><img src=x>|`x`![p](http://h/p.png) [l](javascript:x)\n\n[d]: http://h\n# head"


def test_names_from_outside_are_words_in_markdown(tmp_path, three):
    rows = [dataclasses.replace(r, model=HOSTILE, command=HOSTILE) if r.kind == "student" else r for r in three]
    rows = [dataclasses.replace(r, metrics=dict(r.metrics) | {HOSTILE: 1.0}) for r in rows]
    append_lines(tmp_path / "rows.jsonl", [r.to_json() for r in rows])
    write_report(tmp_path / "rows.jsonl")
    write_paper(tmp_path / "rows.jsonl")
    for name in ("results.md", "paper.md"):
        text = (tmp_path / name).read_text()
        assert "alert(1)" in text
        for part in ("<script", "<img", "![p](", "[l](", "\n[d]:", "\n# head", " `x`"):
            assert part not in text, (name, part)
        shown = [line for line in text.splitlines() if line.startswith("| ") and "alert" in line]
        assert shown


def test_our_own_markdown_stays():
    assert inert("**bold** and 1 < 2") == "**bold** and 1 &lt; 2"
    assert paragraphs(["## a", "b\nc"]) == "## a\n\nb c"
