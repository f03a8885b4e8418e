"""Signals, hangs, dead processes, skipped steps: each ends in bounded time, in one line, with a status of its own."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

from distill.loop import watchdog as watchdog_module
from distill.loop.watchdog import Signals, SkippedSteps, Watchdog, is_broken_collective, signal_status
from scripts.errors import one_line_errors
from teacher.files.errors import TrainingError
from tests.distill.processes import ROOT, Processes

# -- signals --


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=lambda n: str(n)
)
def test_the_first_signal_is_only_noted(number, status):
    before = signal.getsignal(number)
    with Signals() as signals:
        assert signals.number == 0
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert signals.number == number
        assert signal_status(signals.number) == status
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_and_one_that_arrives_twice_does_not(monkeypatch):
    """A launcher passes on the Ctrl-C that the terminal has sent to its processes already."""
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.number == signal.SIGINT
        monkeypatch.setattr(watchdog_module, "TWICE_S", 0.0)
        time.sleep(0.001)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_do_nothing_in_another_thread():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def run():
        with Signals() as signals:
            seen.append((signals.number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(0, before)]
    assert signal.getsignal(signal.SIGTERM) is before


# -- the watchdog --


def sleeping(timeout_s: float, silent_s: float, beats: int, locked: bool) -> str:
    """Beat ten times as often as needed, then be silent, with Python's lock held or not."""
    with Watchdog(timeout_s, process=1, processes=3) as watchdog:
        for k in range(beats):
            watchdog.beat(f"step {k}", checkpoint="step 2 in runs/a")
            time.sleep(timeout_s / 10)
        if locked:
            ctypes.PyDLL(None).usleep(int(1e6 * silent_s))
        else:
            time.sleep(silent_s)
    return "through"


def ended(**arguments: object) -> tuple[int, str, float]:
    """Status, output and seconds of one process that runs `sleeping`."""
    began = time.monotonic()
    with Processes("tests.distill.loop.test_watchdog:sleeping", arguments, count=None) as alone:
        (status,) = alone.codes(60.0)
        return status, alone.output(0), time.monotonic() - began


def test_a_process_that_beats_lives_longer_than_the_limit():
    status, output, _ = ended(timeout_s=2.0, silent_s=0.1, beats=20, locked=False)  # 4 s
    assert (status, output) == (0, "")


def test_a_silent_process_says_where_it_stands_and_leaves():
    status, output, seconds = ended(timeout_s=1.0, silent_s=300.0, beats=3, locked=False)
    assert status == 71
    lines = output.splitlines()
    assert lines[0].startswith("error: process 1 of 3 on ")
    for part in ("(step 2)", "for 1 s", "loop.timeout_s", "last checkpoint (step 2 in runs/a)"):
        assert part in lines[0], lines[0]
    assert any("in sleeping" in line for line in lines[1:])  # the stack of the main thread
    assert seconds < 50


def test_a_process_that_holds_the_lock_of_python_ends_too():
    status, output, _ = ended(timeout_s=1.0, silent_s=300.0, beats=0, locked=True)
    assert status == 1
    assert "Timeout" in output
    assert "in sleeping" in output


def reducing(timeout_s: float) -> None:
    """Endless sums over the processes; the group's own patience lasts longer than the test."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])

    @one_line_errors
    def command() -> None:
        dist.init_process_group("gloo", timeout=timedelta(seconds=600))
        with Watchdog(timeout_s, process=rank, processes=2) as watchdog:
            for step in range(1_000_000):
                watchdog.beat(f"step {step}")
                dist.all_reduce(torch.ones(1000))
                if step == 3:
                    print("going", flush=True)

    command()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
def test_a_process_whose_peer_is_gone_ends_in_one_clear_line(fault):
    with Processes("tests.distill.loop.test_watchdog:reducing", {"timeout_s": 4.0}, count=2) as both:
        end = time.monotonic() + 90
        while "going" not in both.output(0) or "going" not in both.output(1):
            assert time.monotonic() < end, both.tails()
            assert all(process.poll() is None for process in both.running), both.tails()
            time.sleep(0.05)
        os.kill(both.running[1].pid, fault)
        assert both.running[0].wait(60) == 71, both.tails()
        lines = both.output(0).splitlines()
        lines = lines[lines.index("going") + 1 :]
        assert lines[0].startswith("error: process 0 of 2 on ")
        assert "another process" in lines[0]
        assert "step " in lines[0]
        assert "the same command goes on from the last checkpoint" in lines[0]
        if fault == signal.SIGSTOP:
            assert any("all_reduce" in line for line in lines[1:])  # where it waited
            os.kill(both.running[1].pid, signal.SIGCONT)  # it finds its peer gone
            assert both.running[1].wait(60) == 71
            assert "error: process 1 of 2 on " in both.output(1)


def test_only_errors_of_collectives_are_taken_for_a_lost_process():
    class DistBackendError(RuntimeError):
        pass

    assert is_broken_collective(DistBackendError("?"))
    assert is_broken_collective(RuntimeError("[x/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:1"))
    for error in (RuntimeError("out of memory"), ValueError("gloo"), TrainingError("broken pipe"), OSError("NCCL")):
        assert not is_broken_collective(error)
        with pytest.raises(type(error)) as caught, Watchdog(60.0):
            raise error
        assert caught.value is error
    with pytest.raises(TrainingError, match="another process died") as caught, Watchdog(60.0):
        raise RuntimeError("gloo\nwas here")
    assert caught.value.status == 71
    assert "\n" not in str(caught.value)


# -- skipped steps --


def lines_of(run):
    return [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]


def test_skipped_steps_are_written_down_and_too_many_in_a_row_end_the_run(tmp_path):
    skipped = SkippedSteps(tmp_path, 3)
    skipped.add(1, reason="loss", ids=["a", "ü"], losses=[float("nan"), float("-inf")])
    skipped.add(2, reason="gradient", ids=["b"], losses=[0.5])
    skipped.fine()
    for step in (5, 6):
        skipped.add(step, reason="gradient", ids=[f"clip-{k}" for k in range(10)])
    assert (skipped.in_a_row, skipped.total) == (2, 4)
    with pytest.raises(TrainingError, match="3 steps in a row had a loss that is not finite, up to step 7") as caught:
        skipped.add(7, reason="loss", ids=[f"clip-{k}" for k in range(10)])
    assert caught.value.status == 70
    assert "clip-7 and 2 more" in str(caught.value)
    assert "lower optim.lr" in str(caught.value)
    found = lines_of(tmp_path)
    assert found[0] == {"step": 1, "reason": "loss", "loss": ["nan", "-inf"], "ids": ["a", "ü"]}
    assert found[1] == {"step": 2, "reason": "gradient", "loss": [0.5], "ids": ["b"]}
    assert found[4]["loss"] is None
    assert [line["step"] for line in found] == [1, 2, 5, 6, 7]


def test_a_resumed_run_counts_on_and_forgets_steps_that_come_again(tmp_path):
    """Killed after step 6 while writing, with a checkpoint of step 4: the file is that of an uninterrupted run."""
    skipped = SkippedSteps(tmp_path, 3)
    for step in (2, 4, 5):
        skipped.fine()
        skipped.add(step, reason="loss", ids=["a"])
    with (tmp_path / "skipped.jsonl").open("a") as stream:
        stream.write('{"step": 6, "rea')
    again = SkippedSteps(tmp_path, 3, in_a_row=1, first=4)
    assert [line["step"] for line in lines_of(tmp_path)] == [2, 4]
    assert (again.in_a_row, again.total) == (1, 2)
    again.add(5, reason="loss", ids=["a"])
    with pytest.raises(TrainingError, match="3 steps in a row"):
        again.add(6, reason="loss", ids=["a"])


def test_a_line_that_was_cut_off_at_its_end_is_kept_if_it_is_whole(tmp_path):
    for end, steps in (("", [1, 2]), (',"ids', [2])):
        (tmp_path / "skipped.jsonl").write_text('{"step": 1}' + end)
        SkippedSteps(tmp_path, 3).add(2, reason="loss", ids=[])
        assert [line["step"] for line in lines_of(tmp_path)] == steps


def test_other_processes_count_and_do_not_write(tmp_path):
    skipped = SkippedSteps(tmp_path, 2, write=False, in_a_row=1)
    with pytest.raises(TrainingError, match="2 steps in a row"):
        skipped.add(9, reason="gradient", ids=["a"])
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_ends_the_run(tmp_path):
    (tmp_path / "gone").write_text("a file where the run folder was")
    skipped = SkippedSteps(tmp_path / "gone", 5)
    with pytest.raises(TrainingError, match=r"skipped\.jsonl cannot be written: .*File exists"):
        skipped.add(1, reason="loss", ids=["a"])


# -- what the commands leave with --


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TrainingError("so it\nis"), 70),
        (TrainingError("so it is", status=71), 71),
        (ValueError("so it is"), 2),
        (OSError("so it is"), 2),
    ],
    ids=["cannot go on", "lost", "value", "file"],
)
def test_a_command_ends_in_one_line_and_a_status(error, status, capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    @one_line_errors
    def command():
        raise error

    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == status
    assert capsys.readouterr().err == "error: so it is\n"


def test_errors_of_ours_keep_their_traceback():
    @one_line_errors
    def command():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        command()


def test_one_of_several_processes_leaves_without_waiting_for_the_others():
    """Where something at the interpreter's end waits, as a communicator's destructor may."""
    code = (
        "import atexit, time; atexit.register(time.sleep, 300)\n"
        "from teacher.files.errors import TrainingError; from scripts.errors import one_line_errors\n"
        "def command(): print('said before', end=''); raise TrainingError('x', status=71)\n"
        "one_line_errors(command)()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=os.environ | {"WORLD_SIZE": "2", "PYTHONUNBUFFERED": ""},
    )
    assert (done.returncode, done.stdout, done.stderr) == (71, "said before", "error: x\n")


def test_commands_that_fail_early_do_not_wait_for_torch():
    code = "import sys, scripts.errors; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0
