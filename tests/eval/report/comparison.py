"""Rows, budgets and pages that the tests of the report share."""

from eval.compare.rows import Row
from eval.metrics.uncertainty import Estimate
from eval.report.page import write_report
from eval.report.results import Results
from eval.speed.budget import (
    STAGES,
    Budget,
    Machine,
    Roofline,
    Setting,
    StageBudget,
    StageCost,
    Timing,
    with_totals,
)
from teacher.files.lines import append_lines


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
    page = write_report(Results.read(folder / "rows.jsonl")).read_text()
    return page, (folder / "results.md").read_text()


def grouped(model, steps, value, replicates, **more):
    """A row of a corpus score with the same clips and groups as every other."""
    return row(model, steps, metrics={"frechet": value}, estimates={"frechet": estimate(value, replicates=replicates)},
               **more)  # fmt: skip


def three_models():
    """A teacher with two scales, two students, one of them with two scales; distances by group of clips."""
    rows = [grouped("teacher", steps, value, (value - 1, value, value + 1)) for steps, value in ((1, 40.0), (25, 5.0))]
    rows += [grouped("teacher", 25, 8.0, (7.0, 8.0, 9.0), guidance=4.5)]
    rows += [grouped("student", 1, 6.0, (5.0, 6.5, 6.5)), grouped("student", 2, 5.5, (4.5, 5.5, 6.5))]
    rows += [grouped("student", 1, 7.0, (6.0, 7.0, 8.0), guidance=1.0)]
    rows += [grouped("tiny", 1, 50.0, (48.0, 50.0, 51.0), kind="student"), grouped("reference", 0, 1.0, (1.0, 2.0))]
    return rows


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
