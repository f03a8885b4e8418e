"""The ledger: figures that documents quote, in files written by the commands that measured them.

results/NAME.json = {"format": 1, "command", "commit", "modified", "date", "seconds", "versions", "machine", "seeds",
                     "tables": {name: {"columns", "formats", "rows"}}, "text": {name: Markdown}, "rows": [raw records]}

A document names what it quotes, and `render` (`make tables`) writes it there:

    <!-- results NAME ITEM ITEM ... -->
    rendered text, never edited by hand
    <!-- end of results -->

ITEM is the name of a table or of a text of that entry, or `source`: the command, commit, date and machine.
"""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from teacher.files import read_json, replacing

FORMAT = 1
LINE = 120
"""Characters in a line of Markdown."""
BLOCK = re.compile(r"<!-- results (?P<what>[^>]*?) -->\n(?P<text>.*?)<!-- end of results -->", re.DOTALL)
PACKAGES = ("torch", "numpy", "scipy", "accelerate", "deepspeed", "av", "safetensors")
"""Packages whose versions influence numbers or times."""
BEGAN = time.time()
"""When this program started: the time of this module's import."""


@dataclass(frozen=True, kw_only=True)
class NumberTable:
    """A table of numbers with the format of each column.

    A cell is a text, a number, None (left empty), or a list: a number with its standard deviation (two numbers).
    """

    columns: tuple[str, ...]
    formats: tuple[str, ...]
    """Format specification of the numbers of each column, such as ".2f"; "" writes them as they are."""
    rows: tuple[tuple[Any, ...], ...]

    def __post_init__(self) -> None:
        if len(self.formats) != len(self.columns) or any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"a table of {len(self.columns)} columns needs as many formats and cells in every row")

    def markdown(self) -> str:
        """The table in Markdown, without a line break at its end."""
        lines = ["| " + " | ".join(self.columns) + " |", "|" + "---|" * len(self.columns)]
        for row in self.rows:
            cells = (_cell(value, spec) for value, spec in zip(row, self.formats, strict=True))
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return " ± ".join(format(v, spec) for v in value)
    return format(value, spec) if isinstance(value, int | float) else str(value)


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One file of the ledger."""

    command: str
    commit: str
    """Commit of the project; "unknown" outside a checkout."""
    modified: bool | None
    """Whether tracked files differed from `commit`; None where that is not known."""
    date: str
    seconds: float
    """Wall-clock time of the program that wrote it."""
    versions: Mapping[str, str]
    machine: Mapping[str, str]
    seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    tables: Mapping[str, NumberTable] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    """The raw measurements behind the tables, one record each."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the entry of a file. Raises ValueError naming the file where it holds no entry."""
        plain = read_json(path)
        try:
            if plain.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            tables = {name: _table(value) for name, value in plain.pop("tables").items()}
            return cls(tables=tables, **plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{path} is no entry of the ledger: {error}") from error

    def item(self, name: str) -> str:
        """A table, a text, or "source", in Markdown. Raises KeyError naming those that the entry has."""
        if name == "source":
            return self.source
        if name in self.tables:
            return self.tables[name].markdown()
        if name in self.text:
            return self.text[name].strip()
        raise KeyError(f"{name!r} is neither a table nor a text, there are {sorted([*self.tables, *self.text])}")

    @property
    def source(self) -> str:
        """One line that names the command, commit, date and machine of the numbers."""
        changed = ", with changes that were not committed" if self.modified else ""
        load = self.machine.get("load")
        busy = f", load {load}" if load else ""
        return (
            f"`{self.command}`; commit {self.commit[:7]}{changed}, {self.date}, {self.machine.get('device')}, "
            f"{self.machine.get('threads')} threads, torch {self.versions.get('torch')}{busy}."
        )


def record(
    path: Path,
    *,
    tables: Mapping[str, NumberTable] | None = None,
    text: Mapping[str, str] | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    seeds: Mapping[str, Sequence[int]] | None = None,
    command: str | None = None,
) -> LedgerEntry:
    """Write an entry with the results of this program; an earlier entry of the same name is replaced.

    command: the command line to state; by default that of this process.
    """
    import torch  # who renders a document need not wait for it

    from eval.speed.timing import machine_facts

    commit, modified = _commit()
    entry = LedgerEntry(
        command=command or _command(),
        commit=commit,
        modified=modified,
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        seconds=round(time.time() - BEGAN, 1),
        versions={"python": platform.python_version(), **_versions()},
        machine={
            **machine_facts("cuda" if torch.cuda.is_available() else "cpu"),
            "kernels": torch.backends.cpu.get_cpu_capability(),
            "load": f"{os.getloadavg()[0]:.1f}",
        },
        seeds=seeds or {},
        tables=tables or {},
        text=text or {},
        rows=rows,
    )
    with replacing(path) as temporary:
        document = json.dumps({"format": FORMAT} | asdict(entry), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(document + "\n", encoding="utf-8")
    return entry


def render(text: str, results: Path) -> str:
    """A document with every block rewritten from the entries in the folder `results`.

    Raises:
        ValueError: a block names an entry, table or text that is not there, or has no end.
    """

    def written(found: re.Match[str]) -> str:
        name, *items = found["what"].split()
        path = results / f"{name}.json"
        if not path.is_file():
            raise ValueError(f"the ledger has no {path}, which a document quotes")
        entry = LedgerEntry.read(path)
        try:
            body = "\n\n".join(_wrapped(entry.item(item)) for item in items)
        except KeyError as error:
            raise ValueError(f"{path}: {error.args[0]}") from error
        return f"<!-- results {' '.join([name, *items])} -->\n{body}\n<!-- end of results -->"

    made = BLOCK.sub(written, text)
    if len(BLOCK.findall(text)) != text.count("<!-- results "):
        raise ValueError("a block of results has no end")
    return made


def _wrapped(markdown: str) -> str:
    """Markdown whose lines end at 120 characters, but for the rows of tables; a list's lines hang under its first."""
    lines = []
    for line in markdown.split("\n"):
        if len(line) <= LINE or line.startswith("|"):
            lines.append(line)
            continue
        hang = "  " if line.startswith("- ") else ""
        lines += textwrap.wrap(line, LINE, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def quoted(text: str) -> set[str]:
    """Names of the entries that a document quotes."""
    return {found["what"].split()[0] for found in BLOCK.finditer(text)}


def _table(plain: Mapping[str, Any]) -> NumberTable:
    return NumberTable(
        columns=tuple(plain["columns"]),
        formats=tuple(plain["formats"]),
        rows=tuple(tuple(row) for row in plain["rows"]),
    )


def _command() -> str:
    module = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = f"python -m {module.name}" if module is not None else Path(sys.argv[0]).name
    threads = os.environ.get("OMP_NUM_THREADS")
    return " ".join(([f"OMP_NUM_THREADS={threads}"] if threads else []) + [program, shlex.join(sys.argv[1:])]).strip()


def _commit() -> tuple[str, bool | None]:
    root = Path(__file__).resolve().parents[1]
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")) != root:
            return "unknown", None
        changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)results")
        return _git(root, "rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    found = {}
    for name in ("mf-mjt", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
