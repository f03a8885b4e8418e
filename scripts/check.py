"""Compare run folders, features, comparisons and saved models with the digests they carry: has a byte changed?"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from distill.saving.check import REMEDIES, Checked, check_folder
from eval.kept_embeddings import damaged
from scripts.errors import one_line_errors


@dataclass(frozen=True, kw_only=True)
class Check:
    """Read every file that something is recorded of, in these folders and all folders in them; exit status 1 where any
    is damaged or missing."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, feature folders, saved models, comparisons, or folders that hold several of these."""


def check(folders: Sequence[Path], *, report: Callable[[str], None] = lambda line: None) -> Checked:
    """Compare all folders and every folder in them; `report` gets a line for each fault as soon as it is known."""
    found = Checked()
    for folder in folders:
        check_folder(folder, found, report=report)
        for rows in sorted(folder.rglob("rows.jsonl")):
            compared, faults = damaged(rows.parent)
            found.files += len(compared)
            found.bytes += sum(path.stat().st_size for path in compared if path.is_file())
            found.unrecorded -= len(compared)
            for fault in faults:
                found.faults.append(f"{fault}: {REMEDIES['comparison']}")
                report(found.faults[-1])
    return found


def faults(folder: Path) -> list[str]:
    """A line for everything in a folder that is damaged or missing."""
    return check([folder]).faults


@one_line_errors
def cli() -> None:
    """Entry point."""
    folders = tyro.cli(Check, description=__doc__).folders
    if not folders:
        raise ValueError("name at least one folder to check")
    found = check(folders, report=lambda fault: print(_printable(fault), flush=True))
    said = f"{len(found.faults)} damaged" if found.faults else "none damaged"
    print(f"{found.files} files ({found.bytes:,} bytes) compared, {said}; {found.unrecorded} carry no record")
    sys.exit(1 if found.faults else 0)


def _printable(line: str) -> str:
    """In one line, and nothing that a terminal takes for a command."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(line.split()))


if __name__ == "__main__":
    cli()
