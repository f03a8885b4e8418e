"""Evaluation of generated sound: metrics, comparisons of models, and reports of what they found.

    from eval import METRICS, ComparisonConfig, Results, run_comparison, write_report

    write_report(Results.read(Path("runs/demo/rows.jsonl")))  # report.html and results.md beside the rows

A name is loaded when it is first used: METRICS needs no torch, and a report is made without any network.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.compare.comparison import ComparisonConfig, run_comparison
    from eval.metrics import METRICS
    from eval.report.page import write_report
    from eval.report.results import Results

__all__ = ["METRICS", "ComparisonConfig", "Results", "run_comparison", "write_report"]

_MODULES = {
    "METRICS": "eval.metrics",
    "ComparisonConfig": "eval.compare.comparison",
    "Results": "eval.report.results",
    "run_comparison": "eval.compare.comparison",
    "write_report": "eval.report.page",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
