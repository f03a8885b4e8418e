"""Extractions that are stopped, doubled and damaged: `python -m tests.stress.extraction --stops 5`.

One extraction of a small rendered world is left alone; all others must end with its files, byte for byte: those stopped
at random by SIGKILL, SIGTERM or SIGINT and started again; those started twice at once, of which the second is refused;
and finished folders of which one file was cut short, emptied or had a bit flipped, which the same command makes good.
Leaves with status 1 where one does not.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from eval.ledger import NumberTable, record

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WRONG_INPUT = 2


def command(world: Path, out: Path) -> list[str]:
    """An extraction of 40 clips in shards of 4."""
    data = ["--data", str(world / "manifest.jsonl"), "--out", str(out), "--duration-s", "1"]
    return [sys.executable, "-m", "scripts.extract", *data, "--workers", "1", "--shard-size", "4"]


def start(world: Path, out: Path) -> subprocess.Popen[str]:
    """One process; its last words are kept."""
    return subprocess.Popen(
        command(world, out), env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and last line of standard error."""
    _, said = process.communicate(timeout=600)
    return process.returncode, said.replace("\r", "\n").strip().rpartition("\n")[2]


def content(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stopped(world: Path, work: Path, stops: int, usual_s: float, chance: random.Random) -> tuple[int, int]:
    """Number of stops and of extractions that ended."""
    out, done, ended = work / "stopped", 0, 0
    whole = content(work / "untouched")
    while done < stops or not ended:
        process = start(world, out)
        try:
            process.wait(timeout=chance.uniform(0.1, 0.9) * usual_s if done < stops else 600)
        except subprocess.TimeoutExpired:
            process.send_signal(chance.choice(SIGNALS))
            process.wait(timeout=60)
            done += 1
            continue
        finally:
            assert process.stderr is not None
            process.stderr.close()
        assert process.returncode == 0
        assert content(out) == whole, "a stopped extraction ended with other bytes"
        shutil.rmtree(out)
        ended += 1
    return done, ended


def doubled(world: Path, work: Path, wait_s: float) -> bool:
    """Whether of two at once one finished with the right bytes and the other was refused in a line that names it."""
    out = work / "doubled"
    shutil.rmtree(out, ignore_errors=True)
    first = start(world, out)
    time.sleep(wait_s)
    ends = [finish(process) for process in (start(world, out), first)]
    right = content(out) == content(work / "untouched")
    refused = [said for status, said in ends if status == WRONG_INPUT]
    finished = [status for status, _ in ends if status == 0]
    # one that starts when the other has finished finds everything done
    return right and len(finished) + len(refused) == 2 and bool(finished) and all("being written" in s for s in refused)


def mended(world: Path, work: Path, name: str, damage: Callable[[bytes], bytes]) -> bool:
    """Whether a damaged file of a finished folder is made again by the same command."""
    out = work / "damaged"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(work / "untouched", out)
    path = out / name
    path.write_bytes(damage(path.read_bytes()))
    status, _ = finish(start(world, out))
    return status == 0 and content(out) == content(work / "untouched")


def _flip(data: bytes) -> bytes:
    at = len(data) - 100
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def main() -> int:
    """Run all of it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--twice", type=int, default=2, help="rounds of two at once")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--record", type=Path, help="also write the counts to this file of the ledger")
    args = parser.parse_args()
    chance, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory(prefix="extraction-") as temporary:
        work = Path(temporary)
        world = work / "world"
        render = ["-m", "scripts.make_world", "--out", str(world), "--num-clips", "40", "--duration-s", "1"]
        subprocess.run([sys.executable, *render], env=ENVIRONMENT, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        assert finish(start(world, work / "untouched"))[0] == 0
        usual_s = time.monotonic() - began
        stops, ended = stopped(world, work, args.stops, usual_s, chance)
        rows.append((f"stopped {stops} times at random and gone on with", ended, ended))
        twice = sum(doubled(world, work, chance.uniform(0.0, 0.5 * usual_s)) for _ in range(args.twice))
        rows.append(("two at once into one folder", args.twice, twice))
        shard, texts = "shards/train-00001.safetensors", "texts/00000.safetensors"
        kinds: dict[str, Callable[[bytes], bytes]] = {
            "cut short": lambda data: data[:5000], "emptied": lambda data: b"", "a bit flipped": _flip
        }  # fmt: skip
        for what, damage in kinds.items():
            names = (shard, texts, "plan/00000.json")
            rows.append((f"a file of a finished folder, {what}", 3, sum(mended(world, work, n, damage) for n in names)))
    table = NumberTable(
        columns=("extraction", "tried", "same bytes as untouched"), formats=("", "d", "d"), rows=tuple(rows)
    )
    print(table.markdown())
    if args.record:
        record(args.record, tables={"extraction": table}, seeds={"stops": [args.seed]})
    return int(any(row[1] != row[2] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
