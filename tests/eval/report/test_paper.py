"""The tables of a paper from rows: which columns, which values in bold, which names, and what is said around them."""

import re

from eval.compare.hygiene import TestFacts
from eval.compare.rows import Row, json_line
from eval.metrics.uncertainty import Estimate
from eval.report.paper import columns_of, escaped, paper_latex, paper_markdown, paper_table, write_paper
from eval.report.results import Results, TaskResults
from eval.report.settings import settings
from eval.speed.budget import STAGES, Budget, Machine, Roofline, StageBudget, Timing, with_totals
from eval.speed.budget import Setting as Timed
from teacher.files.lines import append_lines


def row(model="teacher", steps=25, seed=0, *, task="vta", metrics=None, **changes):
    values = {
        "task": task,
        "model": model,
        "steps": steps,
        "seed": seed,
        "nfe": 2 * steps,
        "guidance": 1.4,
        "metrics": {"frechet": 10.0} if metrics is None else metrics,
        "rtf": with_totals(dict.fromkeys(STAGES, 0.01 * steps)) if steps else {},
        "num_clips": 4,
        "config_digest": "abc",
        "run_id": "r",
        "command": "c",
        "machine": {"device": "CPU_1 & co"},
    }
    return Row(**(values | changes))


def clips(rows, scores):
    """Per-clip scores of rows, in their order."""
    return {r.scores_key: {f"clip{k}": one for k, one in enumerate(own)} for r, own in zip(rows, scores, strict=True)}


OWN = [c for c in columns_of("vta") if c.key in {"frechet", "kad", "kl", "inception_score", "onset_f1"}]
"""Columns of the project's own scores."""
PUBLISHED = {task: [c for c in columns_of(task) if task in c.paper.tables] for task in ("vta", "tta")}


def table_of(rows, scores=None, task="vta", **more):
    """The table of rows with the scores of their clips."""
    return paper_table(
        TaskResults(task=task, settings=tuple(s for s in settings(rows, scores) if s.task == task), **more)
    )


def bold(text):
    return re.findall(r"\*\*(.+?)\*\*", text)


def test_published_columns_come_in_the_order_of_the_paper_with_ours_after_them():
    metrics = {c.key: 0.5 for c in (*PUBLISHED["vta"], *OWN)}
    rows = [row(metrics=metrics, params=157_000_000, duration_s=8.0), row("student", 1, metrics=metrics)]
    table = table_of(rows, None, "vta")
    assert table.table.columns == (
        "Model", "Params", "Steps", "NFE",
        "FD_PaSST ↓", "FD_PANNs ↓", "FD_VGG ↓", "KL_PANNs ↓", "KL_PaSST ↓", "IS ↑", "IB ↑", "DeSync ↓",
        "Embedded-FD ↓", "Embedded-KAD ↓", "Embedded-KL ↓", "Embedded-IS ↑", "Onset-F1 ↑",
        "RTF ↓", "Time (s) ↓",
    )  # fmt: skip
    first, second = (dict(zip(table.table.columns, [r.model, *(c.text for c in r.cells)], strict=True))
                     for r in table.table.rows)  # fmt: skip
    assert (first["Params"], first["IB ↑"], first["DeSync ↓"]) == ("157M", "50.00", "0.500")  # IB is printed x 100
    assert (first["RTF ↓"], first["Time (s) ↓"]) == ("1.50", "12.0")  # six stages of 0.25, times 8 s
    assert (second["Params"], second["RTF ↓"], second["Time (s) ↓"]) == ("–", "0.0600", "–")
    assert "Not computed" not in paper_markdown(table)


def test_text_to_audio_has_the_columns_of_table_three():
    rows = [row(task="tta", metrics={c.key: 0.5 for c in PUBLISHED["tta"]})]
    titles = table_of(rows, None, "tta").table.columns
    assert titles[3:8] == ("FD_PANNs ↓", "FD_VGG ↓", "IS ↑", "CLAP_LAION ↑", "CLAP_MS ↑")


def test_other_scores_of_published_networks_follow_the_paper_and_are_never_missed():
    extra = {"is_passt": 5.0, "pam": 0.75, "fd_passt": 60.0, "frechet": 2.0, "fd_panns": 7.0}
    titles = table_of([row(metrics=extra)], None, "vta").table.columns
    assert titles[3:8] == ("FD_PaSST ↓", "FD_PANNs ↓", "IS_PaSST ↑", "PAM ↑", "Embedded-FD ↓")
    table = table_of([row(task="tta", metrics=extra)], None, "tta")
    assert table.table.columns[3:8] == ("FD_PANNs ↓", "FD_PaSST ↓", "IS_PaSST ↑", "PAM ↑", "Embedded-FD ↓")
    missed = next(n for n in table.details if n.startswith("Not computed"))
    assert not {"PAM", "KL_PaSST", "AES_PQ"} & set(missed.removesuffix(".").split(": ")[1].split(", "))


def test_how_the_intervals_were_found_is_said_once():
    estimate = Estimate(low=9.0, high=11.0, level=0.95, bias=0.5, count=9, method="a jackknife", bias_method="a form")
    rows = [row(metrics={"frechet": 10.0, "kad": 1.0}, estimates={"frechet": estimate})]
    text = paper_markdown(table_of(rows, None, "vta"))
    assert text.count("Embedded-FD: interval by a jackknife; bias: a form.") == 1
    assert "Embedded-KAD: interval" not in text
    assert "intervals and bias of every value" not in paper_markdown(table_of([row()], None, "vta"))


def test_rows_of_several_models_and_scales_stand_apart():
    rows = [row(), row("small_student", 1, kind="student", guidance=1.0), row("small_student", 1, kind="student"),
            row("other", 1, kind="student")]  # fmt: skip
    table = table_of(rows, None, "vta")
    names = ["Teacher", "small_student, guidance 1", "small_student, guidance 1.4", "other"]
    assert [r.model for r in table.table.rows] == names
    latex = paper_latex(table)
    assert latex.count(r"\midrule") == 4  # below the titles and between four
    assert r"small\_student, guidance 1.4" in latex


def test_columns_nobody_computed_are_left_out_and_named_below():
    table = table_of([row(metrics={"frechet": 1.0, "fd_panns": 2.0}), row("student", 1)], None, "vta")
    assert table.table.columns == ("Model", "Steps", "NFE", "FD_PANNs ↓", "Embedded-FD ↓", "RTF ↓")
    note = next(n for n in table.details if n.startswith("Not computed"))
    assert note == (
        "Not computed, therefore without a column: FD_PaSST, FD_VGG, KL_PANNs, KL_PaSST, IS, IB, DeSync, Params, "
        "Time (s)."
    )
    assert [r.cells[2].text for r in table.table.rows] == ["2.00", "–"]  # a row without it has a dash, not a number


def test_embedded_metrics_never_bear_a_published_name():
    published = {c.name.lower() for columns in PUBLISHED.values() for c in columns}
    for column in OWN:
        name = column.name.lower()
        assert name not in published | {"fd", "fad", "kl", "is", "kad"}
        assert name.startswith(("embedded-", "onset-"))
    text = paper_markdown(table_of([row()], None, "vta"))
    assert "must not be compared" in text
    assert "must not be compared" not in paper_markdown(table_of([row(metrics={"fd_panns": 1.0})], None, "vta"))


def test_best_is_bold_only_where_every_difference_exceeds_its_interval():
    """Four paired differences: 1 +- 0.01 is far from zero; 5 in 16 draws of 3, -1, 3, -1 average to 0 or less."""
    rows = [row(metrics={"kl": 2.0}), row("student", 1, metrics={"kl": 3.0})]
    base = [1.0, 2.0, 2.0, 3.0]
    near = [{"kl": k + 1 + d} for k, d in zip(base, [0.01, -0.01, 0.01, -0.01], strict=True)]
    far = [{"kl": k + 1 + d} for k, d in zip(base, [2.0, -2.0, 2.0, -2.0], strict=True)]
    own = [{"kl": k} for k in base]
    clear = paper_markdown(table_of(rows, clips(rows, [own, near]), "vta"))
    assert bold(clear) == ["2.000"]
    assert "Embedded-KL: paired over clips." in clear
    assert bold(paper_markdown(table_of(rows, clips(rows, [own, far]), "vta"))) == []


def test_one_rival_within_the_interval_is_enough_to_lose_the_bold():
    rows = [row(metrics={"kl": 2.0}), row(steps=8, metrics={"kl": 2.1}), row("student", 1, metrics={"kl": 9.0})]
    scores = [[{"kl": v} for v in values] for values in ([2, 2, 2, 2.0], [1.0, 3.2, 1.0, 3.2], [9.0, 9, 9, 9])]
    assert bold(paper_markdown(table_of(rows, clips(rows, scores), "vta"))) == []


def test_without_an_interval_the_best_is_bold_and_that_is_said():
    rows = [row(metrics={"frechet": 2.0}), row("student", 1, metrics={"frechet": 3.0})]
    text = paper_markdown(table_of(rows, None, "vta"))
    assert bold(text) == ["2.00"]
    assert "Embedded-FD: no interval, the best value is bold." in text
    equal = [row(metrics={"frechet": 2.0}), row("student", 1, metrics={"frechet": 2.0})]
    assert bold(paper_markdown(table_of(equal, None, "vta"))) == []


def test_higher_is_better_where_the_arrow_points_up_and_floors_are_never_best():
    rows = [row(metrics={"is_panns": 5.0}), row("student", 1, metrics={"is_panns": 4.0}),
            row("reference", 0, metrics={"is_panns": 9.0})]  # fmt: skip
    assert bold(paper_markdown(table_of(rows, None, "vta"))) == ["5.00"]


def test_latex_has_rules_arrows_bold_and_as_many_cells_as_columns():
    rows = [row(metrics={"kl": 2.0, "fd_passt": 60.0}), row("student", 1, metrics={"kl": 3.0, "fd_passt": 70.0}),
            row("codec", 0, metrics={"kl": 1.0}), row("reference", 0, metrics={"fd_passt": 1.0})]  # fmt: skip
    text = paper_latex(table_of(rows, None, "vta"))
    for part in (
        r"\toprule",
        r"\bottomrule",
        r"FD\textsubscript{PaSST}$\downarrow$",
        r"\textbf{60.00}",
        r"CPU\_1 \& co",
    ):
        assert part in text
    assert text.count(r"\midrule") == 3  # below the titles, between the models, above the floors
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", text).group(1)
    assert {line.count(" & ") + 1 for line in lines} == {len(columns)}
    assert len(lines) == 5
    assert text.count("{") == text.count("}")
    table, comments = text.split("\\end{table}\n")
    assert not re.search(r"(?<!\\)[%#_](?!.*booktabs)", table)
    assert all(line.startswith("% ") for line in comments.splitlines())


def test_letters_with_a_meaning_in_latex_are_escaped():
    assert escaped(r"a_b 5% {x} \y ~ ^ – ↓") == (
        r"a\_b 5\% \{x\} \textbackslash{}y \textasciitilde{} \textasciicircum{} -- $\downarrow$"
    )


def test_one_command_writes_both_with_the_digest_of_the_ids(tmp_path):
    rows = [row(metrics={"kl": 1.0}), row("student", 1, metrics={"kl": 2.0}), row(task="tta", metrics={"kl": 1.0})]
    lines = [
        json_line({"task": r.task, "model": r.model, "steps": r.steps, "seed": 0, "config_digest": "abc", "id": f"c{k}",
                   "kl": r.metrics["kl"]})
        for r in rows for k in range(4)
    ]  # fmt: skip
    append_lines(tmp_path / "clips.jsonl", lines)
    append_lines(tmp_path / "rows.jsonl", [r.to_json() for r in rows])
    latex, markdown = (path.read_text() for path in write_paper(Results.read(tmp_path / "rows.jsonl")))
    assert latex.count(r"\begin{table}") == markdown.count("## ") == 2
    # printf 'c0\\nc1\\nc2\\nc3\\n' | sha256sum
    assert "SHA-256 of the sorted ids 08443e70448d5428947346795ca301865221ce1a9a1be914bf85e22f5496079f" in markdown
    assert "Overlap with training data: not checked." in markdown
    assert "results.md" not in latex
    assert "08443e70" not in "".join(line for line in latex.splitlines() if not line.startswith("%"))


def test_the_caption_says_task_size_and_kinds_and_has_a_label():
    every = {"fd_panns": 1.0, "frechet": 2.0, "onset_f1": 0.5}
    table = table_of([row(metrics=every)], None, "vta")
    assert table.caption == (
        "Video to audio on 4 test clips: scores of published networks, scores on this project's own (embedded) "
        "features and onsets against known events."
    )
    assert f"\\caption{{{table.caption}}}\n\\label{{tab:vta}}\n" in paper_latex(table)
    published = table_of([row(task="tta", metrics={"fd_panns": 1.0})], None, "tta")
    assert published.caption == "Text to audio on 4 test clips: scores of published networks."
    assert published.label == "tab:tta"


def test_below_the_latex_table_stands_what_a_reader_needs_and_the_rest_is_commented_out():
    estimate = Estimate(low=9.0, high=11.0, level=0.95, bias=0.5, count=9, method="a\njackknife", bias_method="a form")
    rows = [row(metrics={"kl": 1.0}, estimates={"kl": estimate}), row("student", 1, metrics={"kl": 2.0})]
    table = table_of(rows, None, "vta", facts=TestFacts(task="vta", ids=("a", "b", "c", "d")))
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
    table = table_of(rows, None, "vta")
    place = table.table.columns.index("Seeds") - 1
    assert [r.cells[place].text for r in table.table.rows] == ["3", "3", "1", "2", "1", "–"]
    for text in (paper_latex(table), paper_markdown(table)):
        assert "4 clips, means over seeds of the noise, whose number is in the column Seeds." in text
        assert (
            "Unfinished: seeds 1 and 2 are missing for Teacher (50 steps); Student (2 steps). Also, seed 1 is missing "
            "for Student (1 step)."
        ) in text
    equal = table_of([row(seed=s) for s in (0, 1)] + [row("codec", 0)], None, "vta")  # the codec has no noise
    assert "Seeds" not in equal.table.columns
    assert equal.notes[0] == "4 clips, means over 2 seeds of the noise."
    assert "Unfinished" not in paper_markdown(equal)


def test_the_footnote_says_how_the_times_were_taken(tmp_path):
    rows = [row(duration_s=8.0), row("student", 1, duration_s=8.0)]
    note = next(n for n in table_of(rows, None, "vta").notes if n.startswith("RTF"))
    assert note == (
        "RTF and time: video-to-audio, every stage included, one clip at a time, the number of calls was not recorded, "
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
    for path in write_paper(Results.read(tmp_path / "rows.jsonl")):
        sentence = (
            "Teacher: median of 7 calls, 3 threads; Student: the number of calls was not recorded, threads not recorded"
        )
        assert sentence in path.read_text()  # 25 x 0.01 = 2 s / 8 s: the budget is that of the row
    append_lines(tmp_path / "rows.jsonl", [row(duration_s=8.0, rtf=with_totals(dict.fromkeys(STAGES, 0.3))).to_json()])
    assert (
        "median of" not in write_paper(Results.read(tmp_path / "rows.jsonl"))[0].read_text()
    )  # a budget of another measurement
