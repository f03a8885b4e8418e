"""Write the tables of README, docs and benchmarks (`make tables`): results from the ledger in results/, the table of
methods from the objectives, their pages and the presets.

python -m scripts.tables            # rewrite the blocks between the marks
python -m scripts.tables --check    # change nothing; exit status 1 where a document differs
"""

import sys
from pathlib import Path

import tyro

from distill.presets.methods_table import render_methods
from eval.ledger import render
from scripts.errors import one_line_errors

ROOT = Path(__file__).resolve().parents[1]


def documents(root: Path) -> list[Path]:
    """The documents that may quote results."""
    return [root / "README.md", *sorted((root / "docs").glob("**/*.md")), *sorted((root / "benchmarks").glob("*.md"))]


def tables(check: bool = False) -> int:
    """Rewrite the generated blocks of all documents; returns how many documents differed.

    Args:
        check: only compare.
    """
    changed = 0
    for path in documents(ROOT):
        text = path.read_text(encoding="utf-8")
        made = render_methods(render(text, ROOT / "results"), ROOT / "docs" / "methods")
        if made != text:
            changed += 1
            print(f"{path.relative_to(ROOT)} {'is not what `make tables` writes' if check else 'written anew'}")
            if not check:
                path.write_text(made, encoding="utf-8")
    return changed


@one_line_errors
def cli() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    changed = tyro.cli(tables, description=__doc__)
    if changed and "--check" in arguments:
        sys.exit(1)


if __name__ == "__main__":
    cli()
