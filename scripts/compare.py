"""Compare networks on video-to-audio and text-to-audio: quality against steps and guidance, and time by stage.

mf-compare --teacher runs/demo/teacher --student runs/demo/student --steps 1 25 --seeds 0 1 2
torchrun --nproc-per-node 4 -m scripts.compare ...       divides the clips among processes; the results are the same

Rows already in rows.jsonl with the same configuration are reused, and so are the finished parts of an unfinished row.
"""

import shlex
import sys
from contextlib import nullcontext
from functools import partial

import torch
import tyro

from distill.processes import this_process
from eval.compare.comparison import ComparisonConfig, run_comparison
from scripts.errors import one_line_errors
from teacher.files import FolderLock
from teacher.files.processes import Processes


@one_line_errors
def cli() -> None:
    """Entry point of `mf-compare`."""
    config = tyro.cli(ComparisonConfig, description=__doc__)
    rank, world, *_ = this_process()
    alone = FolderLock(config.out, what="the comparison") if rank == 0 else nullcontext()
    command = f"python -m scripts.compare {shlex.join(sys.argv[1:])}".strip()
    with alone, Processes(config.out / "processes", rank, world) as processes:
        run_comparison(
            config, processes, command=command, device=_device(config.device), report=partial(print, flush=True)
        )
    if processes.lead:
        print(f"rows in {config.out / 'rows.jsonl'}")


def _device(asked: str) -> str:
    if asked != "auto":
        return asked
    return f"cuda:{this_process().local_rank}" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    cli()
