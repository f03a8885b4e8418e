"""The table of objectives in docs/methods: from the union, each objective's page and the presets that use it."""

import re
from pathlib import Path
from typing import get_args

from distill.presets.students import STUDENTS
from meanflow import Objective

COLUMNS = (
    "objective", "preset of `mf-distill`", "derivative", "extra evaluations a row with r < t", "`v` from a teacher",
    "page",
)  # fmt: skip
FACTS = re.compile(
    r"^Derivative: (.+?)\.\nExtra evaluations of a row with r < t: (.+?)\.\nVelocity from a teacher: (.+?)\.$", re.M
)
"""The three lines of a page that the table repeats."""
BLOCK = re.compile(r"(?<=<!-- methods -->\n).*?(?=<!-- end of methods -->)", re.S)


def render_methods(text: str, pages: Path) -> str:
    """A document with the table written anew between its marks `<!-- methods -->` and `<!-- end of methods -->`. A
    document without the marks is returned as it is.

    `pages` is the folder of the methods' pages. Raises ValueError for an objective without a page, or with a page that
    lacks the three lines.
    """
    return BLOCK.sub(lambda block: methods_table(pages), text)


def methods_table(pages: Path) -> str:
    """One row per objective of the union, in its order, as Markdown."""
    using: dict[type, list[str]] = {}
    for name, preset in STUDENTS.items():
        using.setdefault(type(preset().method.objective), []).append(f"`{name}`")
    written = {path: path.read_text(encoding="utf-8") for path in sorted(pages.glob("*.md"))}
    rows: list[tuple[str, ...]] = []
    for kind in get_args(Objective):
        file = f"`{kind.__module__.replace('.', '/')}.py`"
        found = [path for path, text in written.items() if file in text.partition("\n```")[0]]
        facts = FACTS.search(written[found[0]]) if found else None
        if facts is None:
            raise ValueError(f"{kind.__name__} needs a page in {pages} that names {file} and states {FACTS.pattern}")
        page = f"[{found[0].stem}]({found[0].name})"
        rows.append((f"`{kind.__name__}`", ", ".join(using.get(kind, ["none"])), *facts.groups(), page))
    head = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)
