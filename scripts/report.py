"""Write the report page, the table of results, and the tables and figures of a paper from rows.jsonl.

python -m scripts.report --rows runs/demo/rows.jsonl
"""

from pathlib import Path

import tyro

from eval.compare.rows import changed_lines
from eval.report.page import write_report
from eval.report.paper import write_paper
from eval.report.results import Results
from scripts.errors import one_line_errors


def report(
    rows: Path,
    data: Path | None = None,
    runs: tuple[Path, ...] = (),
    manifest: Path | None = None,
    figures: bool = False,
) -> None:
    """Write report.html, results.md, paper.tex and paper.md beside the rows.

    Args:
        rows: rows.jsonl of a comparison; examples.json beside it adds the players.
        data: feature folder of the comparison; with it testset.json is written anew, the scored ids and what they have
            in common with the training data of `runs`.
        runs: run folders of the networks compared.
        manifest: table with a group_id column: clips of one group count as the same source.
        figures: also draw the leading charts for a paper, as PDF and SVG in figures/ beside the rows.
    """
    if data is None and (runs or manifest is not None):
        raise ValueError("--runs and --manifest measure the overlap with training data, which needs --data too")
    if not rows.is_file():
        raise ValueError(f"{rows} does not exist; run the comparison first")
    if data is not None:
        from eval.compare.overlap import recheck_overlap  # reads features, for which torch is needed

        for fact in recheck_overlap(rows, data, runs, manifest).values():
            print(f"{fact.task}: {' '.join(fact.sentences())}")
    for path in (rows, rows.with_name("clips.jsonl")):
        for number in changed_lines(path):
            print(f"note: {path}, line {number} is not as the comparison wrote it: damaged, or changed by hand")
    results = Results.read(rows)
    page = write_report(results)
    print(f"wrote {', '.join(map(str, (page, page.with_name('results.md'), *write_paper(results))))}")
    if figures:
        from eval.report.figures import write_figures  # matplotlib takes its time

        written = write_figures(results)
        print(f"wrote {len(written) - 1} figures and their captions to {written[0].parent}")


@one_line_errors
def cli() -> None:
    """Entry point of `mf-report`."""
    tyro.cli(report, description=__doc__)


if __name__ == "__main__":
    cli()
