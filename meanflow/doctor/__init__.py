"""The doctor: examines any module u(x_t, r, t, *conditions) before a training is spent on it."""

from meanflow.doctor.patient import ImportPath, Patient, admit
from meanflow.doctor.report import RULES, Report, Rule, examine, recommend, to_json, to_text
from meanflow.doctor.verdict import Failed, Verdict

__all__ = [
    "Failed", "ImportPath", "Patient", "RULES", "Report", "Rule", "Verdict", "admit", "examine", "recommend",
    "to_json", "to_text",
]  # fmt: skip
