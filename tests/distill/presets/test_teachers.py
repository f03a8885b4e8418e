"""Presets of teachers: the published sizes, the paper's comparisons, and the flags of the command line."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from distill.config import Fresh, FromWeights
from distill.presets.teachers import ABLATIONS, PUBLISHED, teacher_published
from distill.tasks import train_teacher
from scripts.train_teacher import commands
from teacher.network.lora import LoRAConfig
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import variant
from tests.distill import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.features(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_build_at_full_size_and_train_when_small(data, tmp_path, name):
    run = ABLATIONS[name][1]()
    assert replace(run, start=Fresh(), modalities="AVT+AT") == teacher_published("small_16k")
    with torch.device("meta"):
        MMAudio(run.start.network)
    small = replace(run.start.network, num_heads=1, head_dim=16, joint_depth=1, fused_depth=1, mlp_multiple_of=16)
    config = replace(run, data=(data,), start=Fresh(network=small), loop=tiny.LOOP)
    assert len(tiny.losses(train_teacher(config, tmp_path / "run"))) == 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_have_the_published_networks(name):
    run = teacher_published(name)
    assert run.start == Fresh(network=variant(name), init="published")
    assert run.modalities == "AVT+AT"


def test_recipes_take_flags_as_documented():
    arguments = "lora --start.run runs/a --data b c --repeat 5 1 --lora.rank 4 --modalities AV+AT --out d"
    command = tyro.extras.overridable_config_cli(commands(), args=arguments.split())
    assert command.run.start == FromWeights(run=Path("runs/a"))
    assert (command.run.data, command.run.repeat) == ((Path("b"), Path("c")), (5, 1))
    assert (command.run.lora, command.run.modalities) == (LoRAConfig(rank=4), "AV+AT")
    small = tyro.extras.overridable_config_cli(commands(), args=["small-16k", "--data", "b"])
    assert small.run == replace(teacher_published("small_16k"), data=(Path("b"),))
    assert small.out == Path("runs/small-16k")
