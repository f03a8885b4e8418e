"""A paper's table from rows: which columns, which values in bold, which names, and what is said below."""

import math
import re

import numpy as np
import pytest

from eval.compare.rows import Row, json_line
from eval.metrics.onsets import OnsetCounts
from eval.metrics.uncertainty import Estimate
from eval.report.paired import clip_values, difference, mean_interval, settings
from eval.report.paper import OWN, PUBLISHED, escaped, paper_latex, paper_markdown, paper_table, write_paper
from eval.speed.budget import STAGES, with_totals
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


def bold(text):
    return re.findall(r"\*\*(.+?)\*\*", text)


def test_published_columns_come_in_the_order_of_the_paper_with_ours_after_them():
    metrics = {c.key: 0.5 for c in (*PUBLISHED["vta"], *OWN)}
    rows = [row(metrics=metrics, params=157_000_000, duration_s=8.0), row("student", 1, metrics=metrics)]
    table = paper_table(rows, {}, "vta")
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
    titles = paper_table(rows, {}, "tta").table.columns
    assert titles[3:8] == ("FD_PANNs ↓", "FD_VGG ↓", "IS ↑", "CLAP_LAION ↑", "CLAP_MS ↑")


def test_other_scores_of_published_networks_follow_the_paper_and_are_never_missed():
    extra = {"is_passt": 5.0, "pam": 0.75, "fd_passt": 60.0, "frechet": 2.0, "fd_panns": 7.0}
    titles = paper_table([row(metrics=extra)], {}, "vta").table.columns
    assert titles[3:8] == ("FD_PaSST ↓", "FD_PANNs ↓", "IS_PaSST ↑", "PAM ↑", "Embedded-FD ↓")
    table = paper_table([row(task="tta", metrics=extra)], {}, "tta")
    assert table.table.columns[3:8] == ("FD_PANNs ↓", "FD_PaSST ↓", "IS_PaSST ↑", "PAM ↑", "Embedded-FD ↓")
    missed = next(n for n in table.details if n.startswith("Not computed"))
    assert not {"PAM", "KL_PaSST", "AES_PQ"} & set(missed.removesuffix(".").split(": ")[1].split(", "))


def test_how_the_intervals_were_found_is_said_once():
    estimate = Estimate(low=9.0, high=11.0, level=0.95, bias=0.5, count=9, method="a jackknife", bias_method="a form")
    rows = [row(metrics={"frechet": 10.0, "kad": 1.0}, estimates={"frechet": estimate})]
    text = paper_markdown(paper_table(rows, {}, "vta"))
    assert text.count("Embedded-FD: interval by a jackknife; bias: a form.") == 1
    assert "Embedded-KAD: interval" not in text
    assert "intervals and bias of every value" not in paper_markdown(paper_table([row()], {}, "vta"))


def test_rows_of_several_models_and_scales_stand_apart():
    rows = [row(), row("small_student", 1, kind="student", guidance=1.0), row("small_student", 1, kind="student"),
            row("other", 1, kind="student")]  # fmt: skip
    table = paper_table(rows, {}, "vta")
    names = ["Teacher", "small_student, guidance 1", "small_student, guidance 1.4", "other"]
    assert [r.model for r in table.table.rows] == names
    latex = paper_latex(table)
    assert latex.count(r"\midrule") == 4  # below the titles and between four
    assert r"small\_student, guidance 1.4" in latex


def test_columns_nobody_computed_are_left_out_and_named_below():
    table = paper_table([row(metrics={"frechet": 1.0, "fd_panns": 2.0}), row("student", 1)], {}, "vta")
    assert table.table.columns == ("Model", "Steps", "NFE", "FD_PANNs ↓", "Embedded-FD ↓", "RTF ↓")
    note = next(n for n in table.details if n.startswith("Not computed"))
    assert note == (
        "Not computed, therefore without a column: FD_PaSST, FD_VGG, KL_PANNs, KL_PaSST, IS, IB, DeSync, Params, "
        "Time (s)."
    )
    assert [r.cells[2].text for r in table.table.rows] == ["2.00", "–"]  # a row without it has a dash, not a number


def test_embedded_metrics_never_bear_a_published_name():
    published = {c.title[:-2].lower() for columns in PUBLISHED.values() for c in columns}
    for column in OWN:
        name = column.title[:-2].lower()
        assert name not in published | {"fd", "fad", "kl", "is", "kad"}
        assert name.startswith(("embedded-", "onset-"))
    text = paper_markdown(paper_table([row()], {}, "vta"))
    assert "must not be compared" in text
    assert "must not be compared" not in paper_markdown(paper_table([row(metrics={"fd_panns": 1.0})], {}, "vta"))


def test_best_is_bold_only_where_every_difference_exceeds_its_interval():
    """Four paired differences: 1 +- 0.01 is far from zero; 5 in 16 draws of 3, -1, 3, -1 average to 0 or less."""
    rows = [row(metrics={"kl": 2.0}), row("student", 1, metrics={"kl": 3.0})]
    base = [1.0, 2.0, 2.0, 3.0]
    near = [{"kl": k + 1 + d} for k, d in zip(base, [0.01, -0.01, 0.01, -0.01], strict=True)]
    far = [{"kl": k + 1 + d} for k, d in zip(base, [2.0, -2.0, 2.0, -2.0], strict=True)]
    own = [{"kl": k} for k in base]
    clear = paper_markdown(paper_table(rows, clips(rows, [own, near]), "vta"))
    assert bold(clear) == ["2.000"]
    assert "Embedded-KL: paired over clips." in clear
    assert bold(paper_markdown(paper_table(rows, clips(rows, [own, far]), "vta"))) == []


def test_one_rival_within_the_interval_is_enough_to_lose_the_bold():
    rows = [row(metrics={"kl": 2.0}), row(steps=8, metrics={"kl": 2.1}), row("student", 1, metrics={"kl": 9.0})]
    scores = [[{"kl": v} for v in values] for values in ([2, 2, 2, 2.0], [1.0, 3.2, 1.0, 3.2], [9.0, 9, 9, 9])]
    assert bold(paper_markdown(paper_table(rows, clips(rows, scores), "vta"))) == []


def test_without_an_interval_the_best_is_bold_and_that_is_said():
    rows = [row(metrics={"frechet": 2.0}), row("student", 1, metrics={"frechet": 3.0})]
    text = paper_markdown(paper_table(rows, {}, "vta"))
    assert bold(text) == ["2.00"]
    assert "Embedded-FD: no interval, the best value is bold." in text
    equal = [row(metrics={"frechet": 2.0}), row("student", 1, metrics={"frechet": 2.0})]
    assert bold(paper_markdown(paper_table(equal, {}, "vta"))) == []


def test_higher_is_better_where_the_arrow_points_up_and_floors_are_never_best():
    rows = [row(metrics={"is_panns": 5.0}), row("student", 1, metrics={"is_panns": 4.0}),
            row("reference", 0, metrics={"is_panns": 9.0})]  # fmt: skip
    assert bold(paper_markdown(paper_table(rows, {}, "vta"))) == ["5.00"]


def test_groups_of_clips_and_seeds_are_used_where_clips_have_no_scores():
    def one(model, steps, value, replicates):
        estimate = Estimate(low=0.0, high=99.0, level=0.95, bias=0.0, count=9, method="m", bias_method="b",
                            replicates=replicates)  # fmt: skip
        return row(model, steps, metrics={"frechet": value}, estimates={"frechet": estimate}, clips_digest="same")

    rows = [one("teacher", 25, 10.0, (9.0, 11.0, 10.0)), one("student", 1, 14.0, (13.0, 15.0, 17.0))]
    found = difference(*settings(rows, {}), "frechet")
    # Differences -4, -4, -7 by group: variance 2, error sqrt(2 x 2) = 2, t of two degrees of freedom 4.3027.
    assert (found.value, found.how) == (-4.0, "paired over groups of clips")
    assert found.high - found.value == pytest.approx(2 * 4.3027, abs=1e-3)
    rows = [row(seed=s, metrics={"frechet": 10.0 + s}) for s in (0, 1)]
    rows += [row("student", 1, s, metrics={"frechet": v}) for s, v in ((0, 12.0), (1, 15.0))]
    seeds = difference(*settings(rows, {}), "frechet")
    # Differences -2 and -4: mean -3, s / sqrt(2) = 1, t of one degree of freedom = tan(0.475 pi) = 12.706.
    assert seeds.value == pytest.approx(-3.0)
    assert seeds.high + 3.0 == pytest.approx(math.tan(0.475 * math.pi))
    assert "seeds" in seeds.how


def test_pairs_are_made_by_clip_not_by_position():
    rows = [row(metrics={"kl": 2.5}), row("student", 1, metrics={"kl": 3.5})]
    scores = clips(rows, [[{"kl": float(k)} for k in range(4)], [{"kl": k + 1.0} for k in range(4)]])
    other = rows[1].scores_key
    scores[other] = dict(reversed(scores[other].items()))
    found = difference(*settings(rows, scores), "kl")
    assert (found.low, found.high) == pytest.approx((-1.0, -1.0))


def test_jackknife_values_average_to_the_ratio_without_its_bias():
    counts = [OnsetCounts(hits=h, misses=m, false_alarms=f) for h, m, f in ((3, 1, 0), (0, 2, 2), (4, 0, 1))]
    scores = {str(k): {"hits": c.hits, "misses": c.misses, "false_alarms": c.false_alarms}
              for k, c in enumerate(counts)}  # fmt: skip
    values = clip_values(scores | {"unknown": {"kl": 1.0}}, "onset_f1")
    # F1 of all: 14 / 20. Without each: 8/13, 14/16, 6/11. n f - (n - 1) f_-i.
    assert values == pytest.approx({"0": 2.1 - 16 / 13, "1": 2.1 - 28 / 16, "2": 2.1 - 12 / 11})
    assert clip_values(scores, "kl") is None


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(loc=0.3, size=(2000, 10))
    ends = [mean_interval(d) for d in draws]
    covered = np.mean([low <= 0.3 <= high for low, high in ends])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of 2000 draws


def test_latex_has_rules_arrows_bold_and_as_many_cells_as_columns():
    rows = [row(metrics={"kl": 2.0, "fd_passt": 60.0}), row("student", 1, metrics={"kl": 3.0, "fd_passt": 70.0}),
            row("codec", 0, metrics={"kl": 1.0}), row("reference", 0, metrics={"fd_passt": 1.0})]  # fmt: skip
    text = paper_latex(paper_table(rows, {}, "vta"))
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
    latex, markdown = (path.read_text() for path in write_paper(tmp_path / "rows.jsonl"))
    assert latex.count(r"\begin{table}") == markdown.count("## ") == 2
    # printf 'c0\\nc1\\nc2\\nc3\\n' | sha256sum
    assert "SHA-256 of the sorted ids 08443e70448d5428947346795ca301865221ce1a9a1be914bf85e22f5496079f" in markdown
    assert "Overlap with training data: not looked at." in markdown
    assert "results.md" not in latex
    assert "08443e70" not in "".join(line for line in latex.splitlines() if not line.startswith("%"))
