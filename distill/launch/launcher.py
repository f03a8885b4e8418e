"""`accelerate launch` with the same arguments, whose signals arrive and whose exit status is the training's.

    python -m distill.launch.launcher --config_file fsdp2_8gpu -m scripts.distill mf-mjt ...

`accelerate launch` itself dies of SIGUSR1 and leaves its processes running, gives them 30 seconds after SIGTERM before
it kills them, and ends with status 1 whatever their status was. Here SIGUSR1, SIGTERM and SIGINT are passed on and
nothing else happens until the processes have ended; the status is that of the first one that failed, 128 + n where
signal n ended it. A configuration of this folder may be given by its name alone.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from distill.launch import FOLDER

PASSED_ON = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


def main(arguments: list[str]) -> int:
    """Run `accelerate launch` in this process; returns the exit status of the training."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    parsed = launch_command_parser().parse_args(arguments)
    if parsed.config_file is not None:
        parsed.config_file = configuration(parsed.config_file)
    parsed.signals_to_handle = "SIGHUP,SIGQUIT"  # torch's agent would turn the others into a deadline of 30 seconds
    for number in PASSED_ON:
        signal.signal(number, _pass_on)
    try:
        launch_command(parsed)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return _ended(f"process {rank}", failure.exitcode)
    except subprocess.CalledProcessError as error:
        return _ended("the process", error.returncode)
    return 0


def configuration(name: str) -> str:
    """The path of a configuration: as given where such a file exists, else the one of this folder by that name.

    Raises FileNotFoundError naming those there are.
    """
    if Path(name).is_file():
        return name
    shipped = FOLDER / f"{name.removesuffix('.yaml')}.yaml"
    if "/" in name or not shipped.is_file():
        there = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise FileNotFoundError(f"no configuration {name}; shipped are {there}")
    return str(shipped)


def _ended(who: str, code: int) -> int:
    status = code if code >= 0 else 128 - code
    print(f"launch: {who} ended with status {status}", file=sys.stderr, flush=True)
    return status


def _pass_on(number: int, frame: FrameType | None) -> None:
    """Send a signal to the training processes. SIGINT is not sent to those of its own process group, which Ctrl-C in a
    terminal has reached already; a supervisor that signals this process alone sends SIGTERM."""
    import psutil

    children = psutil.Process().children()
    if not children:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    for child in children:
        try:
            if number != signal.SIGINT or os.getpgid(child.pid) != os.getpgrp():
                os.kill(child.pid, number)
        except ProcessLookupError:
            pass  # ended in the meantime


def cli() -> None:
    """Entry point."""
    try:
        status = main(sys.argv[1:])
    except (ValueError, OSError) as error:
        print(f"launch: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    cli()
