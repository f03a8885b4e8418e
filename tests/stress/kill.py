"""Kill training at random moments, many times, and hold what is left against a run that was never touched.

    python -m tests.stress.kill --kills 200                 # one process; about ten minutes on one core
    python -m tests.stress.kill --kills 40 --processes 2    # two under DDP, of which a random one is killed

A training of a few tiny steps saves after every step. It is started, killed with SIGKILL after a random time, started
again and so on until it ends; then the next one begins. After every kill the run folder must hold what it held before
or more: the newest checkpoint verifies and is not older than before, and published weights load. At the end, losses,
weights, averages and optimiser state must equal those of the untouched run bit for bit.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import accelerate  # noqa: F401 - here once, instead of in every child
import torch
import torch._dynamo
from accelerate.utils import gather_object  # noqa: F401
from safetensors.torch import load_file

from distill.checkpoints import store as checkpoint
from distill.config import DistillRun, EvaluationConfig, Method
from distill.tasks import distil, train_teacher
from eval.ledger import NumberTable, record
from meanflow.time_sampling import TimePairs
from teacher.weights.loading import load_network
from tests.distill import tiny

STEPS = 8


@dataclass
class Siege:
    """What was done and found."""

    kills: int = 0
    runs: int = 0
    resumed: int = 0
    """Kills after which a checkpoint was there to go on from."""
    while_saving: int = 0
    """Kills that left an unfinished checkpoint behind."""


def besiege(folder: Path, *, kills: int, seed: int, processes: int = 1, deadline_s: float = 3600.0) -> Siege:
    """At least `kills` kills, unless the deadline comes first; AssertionError at the first difference."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    chance, found, until = random.Random(seed), Siege(), time.monotonic() + deadline_s
    config = _prepared(folder)
    began = time.monotonic()
    assert _wait(_start(config, folder / "reference", processes)) == 0
    usual = time.monotonic() - began
    while found.kills < kills and time.monotonic() < until:
        run = folder / f"run-{found.runs}"
        while True:
            before = _newest_step(run)
            children = _start(config, run, processes)
            if not _struck(children, chance.choice(children), chance.uniform(0.0, 1.1 * usual)):
                break
            found.kills += 1
            found.while_saving += any(run.glob("trainer/*.tmp"))
            found.resumed += _check(run, before)
            if time.monotonic() > until:
                break
        if _newest_step(run) == STEPS:
            _compare(folder / "reference", run)
            found.runs += 1
    return found


def _prepared(folder: Path) -> DistillRun:
    """Features, a teacher, and a distillation with a derivative, two averages, evaluation and saving at every step."""
    child = os.fork()
    if child == 0:  # threads that training starts must not be there when later processes are forked
        _quietly(
            lambda: train_teacher(tiny.teacher_run(tiny.features(folder / "data")), folder / "teacher"),
            folder / "teacher.log",
        )
    assert _wait([child]) == 0
    looks = EvaluationConfig(every=3, num_clips=2)
    loop = replace(tiny.LOOP, steps=STEPS, save_every=1, evaluation=looks, timeout_s=15.0)
    data = folder / "data" / "features"
    return DistillRun(
        data=(data,), teacher=folder / "teacher", method=Method(times=TimePairs(fm_fraction=0.5)), loop=loop
    )


def _start(config: DistillRun, run: Path, processes: int) -> list[int]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(processes)}
            _quietly(lambda: distil(config, run), run.with_suffix(".log"))
        children.append(child)
    return children


def _quietly(work: Callable[[], object], log: Path) -> None:
    """In a forked child, whose output is kept for the case that something differs; never returns."""
    with log.open("a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    status = 1
    try:
        work()
        status = 0
    except SystemExit as left:
        status = int(left.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(status)


def _struck(children: list[int], victim: int, after_s: float) -> bool:
    """Kill one after a time, unless all have finished by then. The others must end by themselves, or are ended."""
    until = time.monotonic() + after_s
    left = set(children)
    while time.monotonic() < until and left:
        for child in list(left):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                left.discard(child)
                assert status == 0, f"a process ended with status {status} although nobody killed it"
        time.sleep(0.002)
    if not left:
        return False
    for child in left:  # a dead node takes all with it sooner or later; the victim goes first
        os.kill(victim if victim in left else child, signal.SIGKILL)
        break
    limit = time.monotonic() + 60
    while left:
        for child in list(left):
            if os.waitpid(child, os.WNOHANG)[0]:
                left.discard(child)
        assert time.monotonic() < limit, "a process outlived a killed one by a minute"
        time.sleep(0.002)
    return True


def _wait(children: list[int]) -> int:
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def _newest_step(run: Path) -> int:
    newest = checkpoint.newest(run) if run.is_dir() else None
    return 0 if newest is None else newest.step


def _check(run: Path, before: int) -> bool:
    """Nothing that was there is lost."""
    now = _newest_step(run)
    assert now >= before, f"{run}: step {before} was saved, {now} is left"
    if (run / "model.safetensors").exists():
        load_network(run, weights="model")
    return now > 0


def _compare(reference: Path, run: Path) -> None:
    a, b = (folder / "trainer" / f"step-{STEPS:07d}" for folder in (reference, run))
    names = sorted(path.name for path in a.glob("*.safetensors"))
    assert names == sorted(path.name for path in b.glob("*.safetensors"))
    for name in names:
        x, y = load_file(a / name), load_file(b / name)
        assert set(x) == set(y)
        assert all(torch.equal(x[n], y[n]) for n in x), f"{run}: {name} differs from the untouched run"
    for name in ("model", "ema-0.1", "ema-0.2"):
        assert (run / f"{name}.safetensors").read_bytes() == (reference / f"{name}.safetensors").read_bytes()
    assert _logged(run) == _logged(reference)


def _logged(run: Path) -> list[dict[str, float]]:
    timed = ("sounds_per_second", "seconds_remaining", "memory_gib")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after this long, however many kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="also write the counts to this file of the ledger")
    args = parser.parse_args()
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))  # left behind when something differs
    found = besiege(folder, kills=args.kills, seed=args.seed, processes=args.processes, deadline_s=60 * args.minutes)
    shutil.rmtree(folder)
    if args.record:
        table = NumberTable(
            columns=("processes", "kills", "left a checkpoint", "left an unfinished one", "runs that ended, all equal"),
            formats=("d",) * 5,
            rows=((args.processes, found.kills, found.resumed, found.while_saving, found.runs),),
        )
        record(args.record, tables={"kills": table}, seeds={"kills": [args.seed]})
    print(
        f"{found.kills} kills of {args.processes} process(es) in {(time.monotonic() - began) / 60:.1f} min: "
        f"{found.resumed} left a checkpoint, {found.while_saving} an unfinished one; {found.runs} runs ended, "
        "all equal to the untouched one bit for bit"
    )


if __name__ == "__main__":
    main()
