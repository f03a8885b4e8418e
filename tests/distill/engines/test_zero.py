"""DeepSpeed's stages in two processes on this CPU, each launched once, and the settings that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from distill.engines.zero import check_settings, complete_settings
from tests.distill.processes import launch

OFFLOADED = {"device": "cpu"}
SMALL = {"reduce_bucket_size": 7000, "allgather_bucket_size": 6000}
"""Several buckets, the largest parameters larger than one."""
SHARDED = SMALL | {"stage3_param_persistence_threshold": 300, "sub_group_size": 20000}
"""The tiny network's biases stay whole in every process, its matrices are sharded, in several groups."""
BRIEFLY = ("gradients_accumulated", "gradients_beside_frozen", "clipping", "curve", "bad_steps", "saved_moments")
"""What depends on the stage most; ZeRO-1 shares the rest with ZeRO-2, and ZeRO-3 is slow."""


def facts(folder: Path, engine: str, zero: dict[str, Any], *, count: int = 2, only: tuple[str, ...] = ()) -> None:
    """Launch the checks with this zero_optimization section; the processes must agree."""
    config = folder / "deepspeed.json"
    config.write_text(json.dumps({"zero_optimization": zero, "bf16": {"enabled": "auto"}}))
    found = launch(
        "tests.distill.zero_checks:every_fact",
        {"engine": engine, "only": only},
        count=count,
        environment={"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(config)},
    )
    assert all(answer == found[0] for answer in found)
    assert max(error for fact, error in found[0].items() if fact.startswith("gradients")) < 1e-5


@pytest.mark.parametrize(
    ("stage", "more", "only"),
    [
        pytest.param(1, SMALL, (), id="zero1", marks=pytest.mark.slow),
        pytest.param(2, SMALL, (), id="zero2"),
        pytest.param(3, SHARDED, ("gradients_accumulated", "bad_steps", "plain_network"), id="zero3"),
        pytest.param(3, SHARDED, (), id="zero3-all", marks=pytest.mark.slow),
    ],
)
def test_trains_as_one_process_does(tmp_path: Path, stage: int, more: dict[str, Any], only: tuple[str, ...]) -> None:
    facts(tmp_path, f"ZeRO-{stage}", {"stage": stage} | more, only=only)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_optimiser_on_the_cpu(tmp_path: Path, stage: int) -> None:
    zero = {"stage": stage, "offload_optimizer": OFFLOADED} | (SHARDED if stage == 3 else SMALL)
    facts(tmp_path, f"ZeRO-{stage}, optimiser on the CPU", zero)


@pytest.mark.slow
def test_zero3_with_everything_on_the_cpu(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_optimizer": OFFLOADED, "offload_param": OFFLOADED} | SHARDED
    facts(tmp_path, "ZeRO-3, optimiser and weights on the CPU", zero)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_single_process(tmp_path: Path, stage: int) -> None:
    zero = {"stage": stage, "offload_optimizer": OFFLOADED} | (SHARDED if stage == 3 else SMALL)
    facts(tmp_path, f"ZeRO-{stage}, optimiser on the CPU", zero, count=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bf16": {"enabled": True}}, "bf16.enabled is not supported: use --mixed_precision bf16"),
        ({"fp16": {"enabled": True, "auto_cast": True}}, "fp16.enabled is not supported: use --mixed_precision bf16"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled is not supported: use --mixed_precision"),
        ({"optimizer": {"type": "Adam"}}, "optimizer is not supported: remove it: AdamW is set by the run's optim"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler is not supported"),
        ({"zero_optimization": {"stage": 0}}, "stage must be 1, 2 or 3, got 0"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "round_robin_gradients is not supported"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}}, "gradients must stay float32"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, "none or cpu, got nvme"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, "ratio must be 1"),
        ({"zero_optimization": {"stage": 2, "offload_param": OFFLOADED}}, "offload_param needs ZeRO stage 3, got 2"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size is not supported"),
    ],
)
def test_settings_that_change_what_is_computed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings({"zero_optimization": {"stage": 2}} | settings)


def test_settings_are_completed_by_the_run() -> None:
    """What the run knows replaces what accelerate fills in; "auto" is left to DeepSpeed; the original stays."""
    given = {
        "train_batch_size": "auto",
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 7.0,
        "bf16": {"enabled": False},
        "zero_optimization": {"stage": 3, "stage3_prefetch_bucket_size": "auto", "offload_param": {"device": "none"}},
    }
    check_settings(given)
    before = json.dumps(given)
    made = complete_settings(given, micro_batch=3, accumulation=2, processes=4, clip_norm=0.5, trained=1000)
    assert json.dumps(given) == before
    assert (made["train_batch_size"], made["gradient_accumulation_steps"], made["gradient_clipping"]) == (24, 2, 0.5)
    zero = made["zero_optimization"]
    assert zero["reduce_bucket_size"] == 1000
    assert zero["memory_efficient_linear"] is False
    assert "stage3_prefetch_bucket_size" not in zero
