"""Assembles the two kinds of run for the loop: a teacher from scratch, a student from a teacher."""

from pathlib import Path

import torch
from torch import nn

from distill.config import DistillConfig, TeacherRun
from distill.step import train_step
from distill.student import student_from_teacher
from distill.tracking import Preview
from distill.train import Task, fit
from meanflow import Guidance
from teacher.audio.codec import AudioCodec
from teacher.data.dataset import Batch, FeatureSet, load_codec
from teacher.generate import clip_seed, generate, noise
from teacher.network import MMAudio
from teacher.train import Terms, flow_matching_step
from teacher.weights import file_digest, load_network, weight_file

PREVIEW_SOUNDS = 3


def train_teacher(config: TeacherRun, run: Path) -> Path:
    """Train an MMAudio network by flow matching on extracted features; the run folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.loop.seed)
        net = MMAudio(config.method.network)
        if config.method.init == "unit":
            net.initialise_unit()

    def step(model: nn.Module, plain: MMAudio, batch: Batch, generator: torch.Generator) -> Terms:
        return flow_matching_step(model, batch, config.method, generator=generator)

    task = Task(
        kind="teacher",
        config=config,
        loop=config.loop,
        data=config.data,
        net=net,
        step=step,
        preview=_Previewer(config.data, num_steps=25),
        digests={"features": file_digest(config.data / "features.json")},
    )
    return fit(task, run)


def train(config: DistillConfig, run: Path) -> Path:
    """Distil the teacher of a run folder into an average-velocity student; the run folder."""
    teacher = load_network(config.teacher)
    student = student_from_teacher(teacher, seed=config.loop.seed).requires_grad_(True)
    for name in ("latent_mean", "latent_std", "empty_string_feat"):
        student.get_parameter(name).requires_grad_(False)

    def step(model: nn.Module, plain: MMAudio, batch: Batch, generator: torch.Generator) -> Terms:
        return train_step(model, plain, teacher, batch, config.method, generator=generator)

    task = Task(
        kind="student",
        config=config,
        loop=config.loop,
        data=config.data,
        net=student,
        step=step,
        preview=_Previewer(config.data, num_steps=1),
        frozen=(teacher,),
        digests={
            "features": file_digest(config.data / "features.json"),
            "teacher": file_digest(weight_file(config.teacher, "auto")),
        },
    )
    return fit(task, run)


class _Previewer:
    """Generates the same few held-out clips each time, for TensorBoard. Loads them on first use."""

    def __init__(self, data: Path, *, num_steps: int) -> None:
        self.data, self.num_steps = data, num_steps
        self.loaded: tuple[FeatureSet, AudioCodec] | None = None

    @torch.no_grad()
    def __call__(self, net: MMAudio) -> Preview:
        if self.loaded is None:
            self.loaded = FeatureSet.open(self.data, "test"), load_codec(self.data)
        clips, codec = self.loaded
        device = next(net.parameters()).device
        index = list(range(min(PREVIEW_SOUNDS, len(clips))))
        batch = clips.batch(index).to(device)
        records = [clips.records[i] for i in index]
        e = noise([clip_seed(0, r.id) for r in records], *batch.latents.shape[1:]).to(device)
        latents = generate(net, batch.conditions, e, num_steps=self.num_steps, guidance=Guidance()).cpu()
        captions = [r.caption for r in records]
        return Preview(codec.decode(latents), codec.sequence.sample_rate, codec.decode_mel(latents), captions)
