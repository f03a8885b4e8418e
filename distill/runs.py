"""Assembles the two kinds of run for the loop: a teacher, fresh or from weights, and a student from a teacher."""

from pathlib import Path

import torch
from torch import nn

from distill.adapters import adapt
from distill.config import DistillConfig, TeacherRun
from distill.start import begin, inherited_codec, inherited_licence
from distill.step import train_step
from distill.student import student_from_teacher
from distill.tracking import Preview
from distill.train import Task, fit
from distill.velocity_source import GuidedInput
from meanflow import Guidance, PlainFlowMatching
from teacher.audio.codec import AudioCodec
from teacher.data.dataset import Batch, FeatureSet
from teacher.data.joint import JointSet, Modalities
from teacher.generate import clip_seed, generate, noise
from teacher.network import MMAudio
from teacher.train import Terms, flow_matching_step
from teacher.weights import file_digest, load_network, weight_file

PREVIEW_SOUNDS = 3


def train_teacher(config: TeacherRun, run: Path, *, weights_dir: Path | None = None) -> Path:
    """Train an MMAudio network by flow matching on extracted features; the run folder.

    `weights_dir` is where published codecs and encoders lie, if not where they lay during extraction.
    """
    started = begin(config.start, config.data[0], seed=config.loop.seed, weights_dir=weights_dir)
    net, codec = started.net, started.codec
    data = open_sets(config.data, config.repeat, codec, modalities=config.modalities)
    merging = None if config.lora is None else adapt(net, config.lora, seed=config.loop.seed)

    def step(model: nn.Module, plain: MMAudio, batch: Batch, generator: torch.Generator, progress: float) -> Terms:
        return flow_matching_step(model, batch, config.method, generator=generator)

    task = Task(
        kind="teacher",
        config=config,
        loop=config.loop,
        data=data,
        features=config.data[0],
        codec=codec,
        net=net,
        step=step,
        preview=_Previewer(config.data[0], codec, num_steps=25),
        digests=_digests(config.data) | started.digests,
        licence=started.licence,
        publish=merging,
    )
    return fit(task, run)


def train(config: DistillConfig, run: Path, *, weights_dir: Path | None = None) -> Path:
    """Distil the teacher of a run folder into an average-velocity student; the run folder."""
    teacher = load_network(config.teacher)
    student = student_from_teacher(
        teacher,
        seed=config.loop.seed,
        guidance_embedding=isinstance(config.method.velocity, GuidedInput),
        velocity_head=config.method.velocity_head,
    )
    if isinstance(config.method.objective, PlainFlowMatching):
        # It never sees r < t. Left as it starts, the interval adds nothing for any r, and jumps are Euler steps.
        student.interval_embed.requires_grad_(False)
    codec = inherited_codec(teacher, config.teacher, config.data[0], weights_dir)
    data = open_sets(config.data, config.repeat, codec)

    def step(model: nn.Module, plain: MMAudio, batch: Batch, generator: torch.Generator, progress: float) -> Terms:
        return train_step(model, plain, teacher, batch, config.method, generator=generator, progress=progress)

    task = Task(
        kind="student",
        config=config,
        loop=config.loop,
        data=data,
        features=config.data[0],
        codec=codec,
        net=student,
        step=step,
        preview=_Previewer(config.data[0], codec, num_steps=1),
        frozen=(teacher,),
        digests=_digests(config.data) | {"teacher": file_digest(weight_file(config.teacher, "auto"))},
        licence=inherited_licence(config.teacher),
    )
    return fit(task, run)


def open_sets(
    folders: tuple[Path, ...], repeat: tuple[int, ...], codec: AudioCodec, *, modalities: Modalities = "AVT+AT"
) -> JointSet:
    """The training splits of feature folders as one set, in the units of the codec's statistics."""
    statistics = (codec.latent_mean, codec.latent_std)
    return JointSet.open(folders, "train", repeat=repeat, modalities=modalities, statistics=statistics)


def _digests(folders: tuple[Path, ...]) -> dict[str, str]:
    return {"features": "+".join(file_digest(folder / "features.json") for folder in folders)}


class _Previewer:
    """Generates the same few clips each time, for TensorBoard: held-out ones if there are. Loads them on first use."""

    def __init__(self, features: Path, codec: AudioCodec, *, num_steps: int) -> None:
        self.features, self.codec, self.num_steps = features, codec, num_steps
        self.clips: FeatureSet | None = None

    @torch.no_grad()
    def __call__(self, net: MMAudio) -> Preview:
        if self.clips is None:
            self.clips = FeatureSet.open(self.features, "test")
        clips, codec = self.clips, self.codec
        device = next(net.parameters()).device
        index = list(range(min(PREVIEW_SOUNDS, len(clips))))
        batch = clips.batch(index).to(device)
        records = [clips.records[i] for i in index]
        e = noise([clip_seed(0, r.id) for r in records], *batch.latents.shape[1:]).to(device)
        latents = generate(net, batch.conditions, e, num_steps=self.num_steps, guidance=Guidance()).cpu()
        captions = [r.caption for r in records]
        return Preview(codec.decode(latents), codec.sequence.sample_rate, codec.decode_mel(latents), captions)
