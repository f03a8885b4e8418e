"""Engines in several processes on this CPU: each is launched once and checks all of `engine_checks`."""

import os
import sys

import pytest

from distill.engines.fsdp import Settings
from tests.distill.processes import HANG_S, Processes, launch

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("engine", "count", "environment"),
    [
        pytest.param("single process", None, {}, id="single"),
        pytest.param("DDP", 2, {}, id="ddp"),
        pytest.param("FSDP2", 2, SHARDED, id="fsdp2"),
    ],
)
def test_trains_as_one_process_does(engine: str, count: int | None, environment: dict[str, str]) -> None:
    found = launch(
        "tests.distill.engine_checks:every_fact",
        {"engine": engine},
        count=count,
        environment=environment,
    )
    assert all(answer == found[0] for answer in found)
    assert max(error for fact, error in found[0].items() if fact.startswith("gradients")) < 1e-5


def test_fsdp2_with_weights_on_the_cpu_and_kept_whole_between_passes() -> None:
    launch(
        "tests.distill.engine_checks:every_fact",
        {
            "engine": "FSDP2, weights and optimiser on the CPU",
            "only": ["gradients_accumulated", "saved_moments"],
        },
        environment=SHARDED | {"FSDP_OFFLOAD_PARAMS": "true", "FSDP_RESHARD_AFTER_FORWARD": "false"},
    )


def test_fsdp_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    assert Settings.from_environment() == Settings(reshard_after_forward=True, offload=False)
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "False")  # YAML's own spelling, which the launcher lowers
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert Settings.from_environment() == Settings(reshard_after_forward=False, offload=True)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 2"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "checkpoint_blocks"),
        ("FSDP_RESHARD_AFTER_FORWARD", "FULL_SHARD", "fsdp_reshard_after_forward must be true or false"),
    ],
)
def test_fsdp_settings_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=says):
        Settings.from_environment()


def test_a_failed_process_ends_the_others_and_shows_all_outputs() -> None:
    program = "import os, sys, time; sys.exit('no space left') if os.environ['RANK'] == '1' else time.sleep(300)"
    with Processes(command=[sys.executable, "-c", program]) as processes:
        with pytest.raises(AssertionError, match=r"(?s)exit codes \[-9, 1\].*process 0.*process 1.*no space left"):
            processes.answers(timeout_s=HANG_S)
        assert all(process.poll() is not None for process in processes.running)


def test_a_hang_is_a_failure() -> None:
    with (
        Processes(command=[sys.executable, "-c", "import time; time.sleep(300)"]) as processes,
        pytest.raises(AssertionError, match=r"exit codes \[-9, -9\]"),
    ):
        processes.answers(timeout_s=1)


def test_answers_come_in_order_of_rank() -> None:
    answers = launch("os:getenv", {"key": "RANK"}, count=3)
    assert answers == ["0", "1", "2"]
