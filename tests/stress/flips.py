"""Flip bits and cut files everywhere in what the demo leaves, and see whether their use notices.

    python -m tests.stress.flips --demo runs/demo --tries 10

For every kind of file a copy of its folder is damaged in one random bit (or cut to half), then used as users do:
opened, loaded, read. Noticed means an error in one line, or a line that says what was passed over; `mf-check` has
to notice each of them as well. Leaves with status 1 where anything went unnoticed.
"""

import argparse
import contextlib
import io
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.checkpoints import store as checkpoint
from eval.compare.rows import embeddings_path, read_rows
from eval.compare.verify import features_of_row
from eval.ledger import NumberTable, record
from scripts.check import faults
from teacher.features.codec import load_codec
from teacher.features.dataset import FeatureSet
from teacher.sampling.model_card import ModelCard
from teacher.sampling.pipeline import Pipeline

READ_AT_ONCE = 64
LEFT_OUT = shutil.ignore_patterns("tensorboard", "world", "media", "seed-*", "cache", "parts")


@dataclass(frozen=True, kw_only=True)
class Place:
    """A file of a folder, and what its user does with the folder."""

    what: str
    folder: Path
    file: Path
    use: Callable[[Path], object]


def places(demo: Path, saved: Path, scores: Path) -> Iterator[Place]:
    """Every kind of file that carries numbers."""
    student, features = demo / "student", demo / "features"
    newest = max((student / "trainer").iterdir(), key=lambda path: path.name).relative_to(student)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        yield Place(what=f"checkpoint, {name}", folder=student, file=newest / name, use=_resumed)
    average = min(student.glob("ema-*.safetensors")).name
    yield Place(what="weights for use", folder=student, file=Path(average), use=Pipeline.load)
    yield Place(what="codec of a run", folder=student, file=Path("codec.safetensors"), use=Pipeline.load)
    for name in ("model.safetensors", "codec.safetensors"):
        yield Place(what=f"saved folder, {name}", folder=saved, file=Path(name), use=Pipeline.from_pretrained)
    shard, texts = Path("shards/train-00000.safetensors"), Path("texts/00000.safetensors")
    for what, file in (("features, shard", shard), ("features, captions", texts)):
        yield Place(what=f"{what}, opened and read", folder=features, file=file, use=_read)
    yield Place(what="features, shard, all of it read", folder=features, file=shard, use=_verified)
    yield Place(what="features, codec", folder=features, file=Path("codec.safetensors"), use=load_codec)
    row = next(row for row in read_rows(scores / "rows.jsonl") if row.model == "student")
    kept = embeddings_path(Path("rows.jsonl"), row)
    yield Place(
        what="comparison, kept embeddings",
        folder=scores,
        file=kept,
        use=lambda folder: features_of_row(folder / "rows.jsonl", row),
    )


def flipped(content: bytes, path: Path, chance: random.Random) -> bytes:
    """One bit of the data; of safetensors behind the header, whose damage any reader notices."""
    begin = 8 + int.from_bytes(content[:8], "little") if path.suffix == ".safetensors" else 0
    at = chance.randrange(begin, len(content))
    return content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :]


def notices(place: Place, folder: Path) -> bool:
    """Whether using the folder says that something is wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            place.use(folder)
    except (ValueError, OSError):
        return True
    return "passed over" in said.getvalue()


def _resumed(folder: Path) -> None:
    checkpoint.newest(folder)


def _read(folder: Path) -> None:
    features = FeatureSet.open(folder, "train")
    features.batch(range(min(READ_AT_ONCE, len(features))))


def _verified(folder: Path) -> None:
    FeatureSet.open(folder, "train").verify()


def main() -> int:
    """Damage, use, count; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--tries", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, help="also write the counts to this file of the ledger")
    args = parser.parse_args()
    chance, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory(prefix="flips-") as temporary:
        work = Path(temporary)
        saved, scores = work / "saved", work / "scores"
        Pipeline.load(args.demo / "student").save_pretrained(saved, ModelCard(name="flips/student", data="none"))
        scores.mkdir()
        for path in args.demo.glob("*.json*"):
            shutil.copy(path, scores)
        shutil.copytree(args.demo / "embeddings", scores / "embeddings")
        for place in places(args.demo, saved, scores):
            found = {"bit": 0, "half": 0, "checked": 0}
            whole = (place.folder / place.file).read_bytes()
            for k in range(args.tries + 1):
                copy = work / "copy"
                shutil.copytree(place.folder, copy, ignore=LEFT_OUT)
                damaged = whole[: len(whole) // 2] if k == args.tries else flipped(whole, place.file, chance)
                (copy / place.file).write_bytes(damaged)  # a copy of its own, no link
                found["half" if k == args.tries else "bit"] += notices(place, copy)
                found["checked"] += bool(faults(copy))
                shutil.rmtree(copy)
            rows.append((place.what, args.tries, found["bit"], found["half"], found["checked"]))
            print(*rows[-1], flush=True)
    table = NumberTable(
        columns=("file", "bits flipped", "noticed in use", "cut to half, noticed (of 1)", "noticed by mf-check"),
        formats=("", "d", "d", "d", "d"),
        rows=tuple(rows),
    )
    print(table.markdown())
    if args.record:
        record(args.record, tables={"flips": table}, seeds={"flips": [args.seed]})
    return int(any(row[2] < args.tries or row[3] < 1 or row[4] < args.tries + 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
