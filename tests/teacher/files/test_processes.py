"""Processes on one folder: who waits for another learns of its failure, its silence or its absence."""

import contextlib
import threading
import time

import pytest

from teacher.files.errors import FeatureError
from teacher.files.processes import Processes


def test_a_process_that_fails_ends_the_wait_of_the_others(tmp_path):
    def fail() -> None:
        with contextlib.suppress(ValueError), Processes(tmp_path / "beats", 1, 2):
            time.sleep(0.3)
            raise ValueError("the disk\nis full")

    def lead() -> None:
        with Processes(tmp_path / "beats", 0, 2) as processes:
            processes.meet()
            processes.wait(lambda: False, what="something", on=[1])

    failing = threading.Thread(target=fail)
    failing.start()
    with pytest.raises(FeatureError, match="process 1 of 2 failed: the disk is full"):
        lead()
    failing.join()


def test_a_process_that_never_starts_is_named(tmp_path):
    def lead() -> None:
        with Processes(tmp_path / "beats", 0, 2, patience_s=0.2) as processes:
            processes.meet()

    with pytest.raises(FeatureError, match=r"process 1 of 2 gives no sign of life .* the start of all processes"):
        lead()
    with pytest.raises(ValueError, match=r"part must be \(rank, world\)"):
        Processes(tmp_path, 2, 2)
