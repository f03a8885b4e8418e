"""Configurations of runs: what may change between two starts, and what runs of earlier versions called their parts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from distill.checkpoints.publish import write_config
from distill.config import DistillRun, with_current_names
from distill.presets.students import student_debug
from distill.presets.teachers import (
    ABLATIONS,
    teacher_debug,
    teacher_demo,
    teacher_finetune,
    teacher_lora,
    teacher_published,
)
from meanflow.config import from_plain, to_plain
from teacher.network.lora import LoRAConfig
from teacher.network.variants import MMAudioConfig
from tests.distill import tiny

EARLIER = Path(__file__).parent / "checkpoints" / "config_of_version_0_1_0.json"
"""config.json as the debug preset of version 0.1.0 wrote it, with --loop.steps 2000 --loop.save-every 2000."""


@pytest.fixture
def earlier(tmp_path):
    """A run folder of version 0.1.0, and its configuration as read today."""
    shutil.copy(EARLIER, tmp_path / "config.json")
    plain = with_current_names(json.loads(EARLIER.read_text()))
    return tmp_path, from_plain(DistillRun, plain["run"]), from_plain(MMAudioConfig, plain["network"]), plain["digests"]


def test_a_run_of_an_earlier_version_is_read_and_resumed(earlier):
    folder, config, network, digests = earlier
    debug = student_debug()
    assert config == replace(debug, loop=replace(debug.loop, steps=2000, save_every=2000))
    write_config(folder, "student", config, network, digests)
    write_config(folder, "student", replace(config, data=(Path("moved"),), teacher=Path("too")), network, digests)
    operational = replace(config, loop=replace(config.loop, save_every=7, timeout_s=3.0))
    write_config(folder, "student", operational, network, digests)
    assert json.loads((folder / "config.json").read_text()) == json.loads(EARLIER.read_text())


def test_what_differs_from_a_run_of_an_earlier_version_is_named_and_its_old_names_are_not(earlier):
    folder, config, network, digests = earlier
    with pytest.raises(ValueError, match=r"\(run\.loop\.seed 0 instead of 1\)|\(run\.loop\.seed 1 instead of 0\)"):
        write_config(folder, "student", replace(config, loop=replace(config.loop, seed=1)), network, digests)


CONFIGS = [teacher_demo(), teacher_debug(), teacher_finetune(), teacher_lora(), teacher_published("large_44k_v2")]


@pytest.mark.parametrize("config", [*CONFIGS, *(make() for _, make in ABLATIONS.values()), student_debug()])
def test_configuration_survives_json(config, tmp_path):
    assert from_plain(type(config), json.loads(json.dumps(to_plain(config)))) == config
    for _ in range(2):  # the second time, the file is compared
        write_config(tmp_path, "teacher", config, tiny.NETWORK, {"features": "0"})
    other = replace(config, loop=replace(config.loop, seed=config.loop.seed + 1))
    with pytest.raises(ValueError, match=r"another configuration \(run\."):
        write_config(tmp_path, "teacher", other, tiny.NETWORK, {"features": "0"})


def test_configuration_written_before_a_field_existed_still_fits(tmp_path):
    config = teacher_debug()
    write_config(tmp_path, "teacher", config, tiny.NETWORK, {})
    document = json.loads((tmp_path / "config.json").read_text())
    del document["run"]["loop"]["ema_snapshot_every"]
    del document["network"]["sync"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    write_config(tmp_path, "teacher", config, tiny.NETWORK, {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoRAConfig(rank=2)}, "lora adapts trained weights"),
        ({"data": ()}, "at least one feature folder"),
        ({"repeat": (2, 1)}, r"one number per folder of data \(1\)"),
        ({"repeat": (0,)}, "at least 1 everywhere"),
    ],
)
def test_contradictory_runs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(teacher_debug(), **changes)
