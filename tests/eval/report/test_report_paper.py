"""What is said around a paper's table: caption, footnote, and what is a comment."""

from eval.compare.hygiene import TestFacts
from eval.metrics.uncertainty import Estimate
from eval.report.paper import paper_latex, paper_markdown, paper_table, write_paper
from eval.speed.budget import STAGES, Budget, Machine, Roofline, StageBudget, Timing, with_totals
from eval.speed.budget import Setting as Timed
from teacher.files.lines import append_lines
from tests.eval.report.test_paper_table import row


def test_the_caption_says_task_size_and_kinds_and_has_a_label():
    every = {"fd_panns": 1.0, "frechet": 2.0, "onset_f1": 0.5}
    table = paper_table([row(metrics=every)], {}, "vta")
    assert table.caption == (
        "Video to audio on 4 test clips: scores of published networks, scores on this project's own (embedded) "
        "features and onsets against known events."
    )
    assert f"\\caption{{{table.caption}}}\n\\label{{tab:vta}}\n" in paper_latex(table)
    published = paper_table([row(task="tta", metrics={"fd_panns": 1.0})], {}, "tta")
    assert published.caption == "Text to audio on 4 test clips: scores of published networks."
    assert published.label == "tab:tta"


def test_below_the_latex_table_stands_what_a_reader_needs_and_the_rest_is_commented_out():
    estimate = Estimate(low=9.0, high=11.0, level=0.95, bias=0.5, count=9, method="a\njackknife", bias_method="a form")
    rows = [row(metrics={"kl": 1.0}, estimates={"kl": estimate}), row("student", 1, metrics={"kl": 2.0})]
    table = paper_table(rows, {}, "vta", facts=TestFacts(task="vta", ids=("a", "b", "c", "d")))
    shown, comments = paper_latex(table).split("\\end{table}\n")
    for text in (
        "4 clips, means over 1 seed of the noise.",
        "must not be compared",
        "Bold: the best",
        "RTF and time: ",
    ):
        assert text in shown
    for text in ("Not computed", "interval by a jackknife", "SHA-256 of the sorted ids"):
        assert text in comments
        assert text not in shown
    assert "Embedded-KL: no interval, the best value is bold." in shown  # what weakens the bold is not hidden
    assert all(line.startswith("% ") for line in comments.splitlines())  # a line break does not end a comment
    assert "results.md" not in shown + comments
    assert "are in results.md" in paper_markdown(table)


def test_unequal_seeds_have_a_column_and_are_called_unfinished():
    rows = [row(seed=s, steps=n) for s in (0, 1, 2) for n in (1, 25)] + [row("student", 1, s) for s in (0, 2)]
    rows += [row("student", 2), row("codec", 0), row(seed=0, steps=50)]
    table = paper_table(rows, {}, "vta")
    place = table.table.columns.index("Seeds") - 1
    assert [r.cells[place].text for r in table.table.rows] == ["3", "3", "1", "2", "1", "–"]
    for text in (paper_latex(table), paper_markdown(table)):
        assert "4 clips, means over seeds of the noise, as many as the column Seeds says." in text
        assert (
            "Unfinished: seeds 1 and 2 are missing for Teacher (50 steps); Student (2 steps). Also, seed 1 is missing "
            "for Student (1 step)."
        ) in text
    equal = paper_table([row(seed=s) for s in (0, 1)] + [row("codec", 0)], {}, "vta")  # the codec has no noise
    assert "Seeds" not in equal.table.columns
    assert equal.notes[0] == "4 clips, means over 2 seeds of the noise."
    assert "Unfinished" not in paper_markdown(equal)


def test_the_footnote_says_how_the_times_were_taken(tmp_path):
    rows = [row(duration_s=8.0), row("student", 1, duration_s=8.0)]
    note = next(n for n in paper_table(rows, {}, "vta").notes if n.startswith("RTF"))
    assert note == (
        "RTF and time: video-to-audio, every stage included, one clip at a time, the number of calls was not kept, "
        "threads not recorded, on CPU_1 & co."
    )
    stages = tuple(
        StageBudget(
            stage=name,
            batch=1,
            dtype="float32",
            timing=Timing(median_s=2.0, p10_s=2.0, p90_s=2.0, repeats=7 if name == "text encoder" else 50),
            setting=Timed(steps=25, guidance=1.4) if name == "flow network" else None,
        )
        for name in STAGES
    )
    Budget(
        name="x", duration_s=8.0, command="", cuda=None, tf32="none", compiled=False, attention=(), stages=stages,
        machine=Machine(device="here", torch_version="2", threads=3, dtype="float32"),
        rooflines=(Roofline(flops_per_s=1.0, bytes_per_s=1.0, dtype="float32", device="here"),),
    ).write(tmp_path / "budget-teacher-vta.json")  # fmt: skip
    append_lines(tmp_path / "rows.jsonl", [r.to_json() for r in rows])
    for path in write_paper(tmp_path / "rows.jsonl"):
        told = "Teacher: median of 7 calls, 3 threads; Student: the number of calls was not kept, threads not recorded"
        assert told in path.read_text()  # 25 x 0.01 = 2 s / 8 s: the budget is that of the row
    append_lines(tmp_path / "rows.jsonl", [row(duration_s=8.0, rtf=with_totals(dict.fromkeys(STAGES, 0.3))).to_json()])
    assert "median of" not in write_paper(tmp_path / "rows.jsonl")[0].read_text()  # a budget of another measurement
