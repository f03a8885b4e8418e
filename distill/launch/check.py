"""Proves that `accelerate launch`, typed as the documentation has it, starts two processes on this machine's CPU.

    python -m distill.launch.check

The console command of the running environment starts this module again in two processes under the shipped file for
DeepSpeed ZeRO-2, where they add up a number over gloo. It takes seconds, and needs and touches no GPU.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

from distill.launch import FOLDER

ANSWER = "--answer"
"""The argument with which the two processes are started."""
LIMIT_S = 600.0
"""Long enough for two cold imports of torch and DeepSpeed on a slow disk."""


def check() -> str:
    """The description of the engine that two processes started. Raises OSError where they did not start or answer."""
    command = [console_command(), "launch"]
    command += ["--config_file", str(FOLDER / "zero2_8gpu.yaml"), "--num_processes", "2"]
    command += ["-m", "distill.launch.check", ANSWER]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = started.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
        raise OSError(f"two processes did not start within {LIMIT_S:.0f} s by {shlex.join(command)}") from None
    found = re.search(r"^(.*); 2 processes answered$", output, re.MULTILINE)
    if started.returncode == 0 and found:
        return found[1]
    raise OSError(
        f"accelerate launch cannot start two processes ({_reason(errors)}); see all of it by {shlex.join(command)}"
    )


def console_command() -> str:
    """What a shell finds as `accelerate` where the environment of this interpreter is activated."""
    return str(Path(sysconfig.get_path("scripts")) / "accelerate")


def _reason(errors: str) -> str:
    """The most telling line of a program's standard error: a process's own error, else its exit status."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    for wanted in (r"(\[rank\d\]: )?(error: |(?!.*ChildFailedError)[\w.]+(Error|Exception)\b)", r"exitcode"):
        for line in lines:
            if re.match(wanted, line):
                return line
    return lines[-1] if lines else "there was no output"


def answer() -> None:
    """The program of each of the two processes: add up a number over the engine and print it."""
    import torch

    from distill.engines import choose_engine

    engine = choose_engine(timeout_s=60.0)
    count = engine.total(torch.ones((), device=engine.device))
    if engine.main:
        print(f"{engine.describe()}; {count:.0f} processes answered", flush=True)


def cli() -> None:
    """Entry point."""
    if sys.argv[1:] == [ANSWER]:
        answer()
        return
    try:
        print(f"accelerate launch works: {check()}")
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    cli()
