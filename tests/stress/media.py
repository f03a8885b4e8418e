"""Damaged films of every container through every reader: `python -m tests.stress.media --films 400`.

Bytes replaced, zeroed, left out or doubled, and files cut off. Every answer has to be what was read, or one line that
names the file, within the time and memory of tests/teacher/media/test_hostile_media.py; anything else ends this with an
AssertionError that shows it.
"""

import argparse
import tempfile
from pathlib import Path

from eval.ledger import NumberTable, record
from tests.teacher.media.test_hostile_media import CONTAINERS, fuzz


def main() -> None:
    """Damage, read, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=400, help="damaged films of every container")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--record", type=Path, help="also write the counts to this file of the ledger")
    args = parser.parse_args()
    rows = []
    for suffix, codecs in CONTAINERS.items():
        with tempfile.TemporaryDirectory(prefix="media-") as folder:
            answers = fuzz(Path(folder), suffix, args.films, args.seed)
        said = [word for told in answers for word in told.values()]
        rows.append((f"{suffix} ({', '.join(codecs)})", len(answers), len(said), said.count("fine")))
        print(*rows[-1], flush=True)
    table = NumberTable(
        columns=("container", "damaged films", "times read", "of which fine, all others one line"),
        formats=("", "d", "d", "d"),
        rows=tuple(rows),
    )
    print(table.markdown())
    if args.record:
        record(args.record, tables={"media": table}, seeds={"damage": [args.seed]})


if __name__ == "__main__":
    main()
