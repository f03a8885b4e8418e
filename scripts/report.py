"""Write the report page and the table of results from rows.jsonl.

python -m scripts.report --rows runs/demo/rows.jsonl
"""

from pathlib import Path

import tyro

from eval.report import write_report
from scripts.errors import one_line_errors


def report(rows: Path) -> None:
    """Write report.html and results.md beside the rows.

    Args:
        rows: rows.jsonl of a comparison; examples.json beside it adds the players.
    """
    page = write_report(rows)
    print(f"wrote {page} and {page.with_name('results.md')}")


@one_line_errors
def cli() -> None:
    """Entry point of `mf-report`."""
    tyro.cli(report, description=__doc__)


if __name__ == "__main__":
    cli()
