"""Builds the two kinds of training task: a teacher, fresh or from weights, and a student from a teacher."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from distill.config import DistillRun, TeacherRun
from distill.evaluation import BEST_STUDENT, BEST_TEACHER, HeldOut, Scores
from distill.evaluation.clips import Reference
from distill.initial_network import (
    InitialNetwork,
    fresh_or_loaded,
    inherited_codec,
    inherited_licence,
    loaded,
    resumed_student,
)
from distill.loop.fit import fit
from distill.loop.session import TrainingTask
from distill.method.adapters import adapt
from distill.method.step import train_step
from distill.method.student import (
    check_differences,
    in_full,
    refitted,
    student_config,
    student_from_teacher,
    time_fit,
)
from distill.processes import this_process
from meanflow import Guidance
from teacher.audio.codec import AudioCodec
from teacher.features.dataset import JointSet, Modalities
from teacher.files import file_sha256
from teacher.flow_matching import Terms, flow_matching_step
from teacher.network.batch import Batch, BatchSlice
from teacher.network.embeddings import SMOOTH_LIMIT
from teacher.network.mmaudio import MMAudio

TIME_FIT_CLIPS = 4
"""Clips on which the effect of a new time embedding is measured."""


def train_teacher(
    config: TeacherRun, run: Path, *, weights_dir: Path | None = None, scores: Scores | None = None
) -> Path:
    """Train an MMAudio network by flow matching on extracted features and return the run folder.

    `weights_dir` holds the published codecs and encoders, if not the folder used in extraction; `scores` scores the
    sound generated of held-out clips.
    """
    return fit(teacher_task(config, run, weights_dir=weights_dir, scores=scores), run)


def teacher_task(
    config: TeacherRun, run: Path, *, weights_dir: Path | None = None, scores: Scores | None = None
) -> TrainingTask:
    """The task of `train_teacher`. Raises ValueError where network, features and codec do not go together."""
    start = fresh_or_loaded(config.start, config.data[0], seed=config.loop.seed, weights_dir=weights_dir)
    net, codec = start.net, start.codec
    data = open_sets(config.data, config.repeat, codec, modalities=config.modalities)
    merging = None if config.lora is None else adapt(net, config.lora, seed=config.loop.seed)

    def step(
        model: nn.Module,
        plain: MMAudio,
        averaged: MMAudio | None,
        batch: Batch,
        generator: torch.Generator,
        progress: float,
        batch_slice: BatchSlice,
    ) -> Terms:
        return flow_matching_step(model, batch, config.method, generator=generator, batch_slice=batch_slice)

    return TrainingTask(
        kind="teacher",
        config=config,
        loop=config.loop,
        data=data,
        features=config.data[0],
        codec=codec,
        net=net,
        step=step,
        evaluate=HeldOut(config.data[0], codec, config.loop.evaluation, run=run, scores=scores),
        best=BEST_TEACHER,
        digests=_digests(config.data) | start.digests,
        licence=start.licence,
        publish=merging,
    )


def distil(config: DistillRun, run: Path, *, weights_dir: Path | None = None, scores: Scores | None = None) -> Path:
    """Distil the teacher of a run folder into an average-velocity student and return the student's run folder.

    Where the teacher's time embedding is too fast to differentiate, a line states what replaces it and how far the
    student then starts from its teacher.
    """
    task = student_task(config, run, weights_dir=weights_dir, scores=scores)
    if not (run / "config.json").exists() and this_process().main:
        for line in time_note(config, task):
            print(line, flush=True)
    return fit(task, run)


def student_task(
    config: DistillRun, run: Path, *, weights_dir: Path | None = None, scores: Scores | None = None
) -> TrainingTask:
    """The task of `distil`. Raises ValueError where teacher, student, data and method do not go together."""
    method, seed = config.method, config.loop.seed
    teacher, teacher_digest = loaded(config.teacher)
    codec = inherited_codec(teacher, config.teacher, config.data[0], weights_dir)
    start = _student(config, teacher, codec, weights_dir)
    student, publish = start.net, None
    check_differences(student, method.objective)
    if config.lora is not None:
        publish = adapt(student, config.lora, seed=seed, in_full=in_full(student.config, teacher.config))
    if not method.objective.needs.learns_intervals:
        # Left as it starts, the embedding of t - r adds nothing for any r, and jumps are Euler steps.
        student.interval_embed.requires_grad_(False)
    digests = {"teacher": teacher_digest}

    def step(
        model: nn.Module,
        plain: MMAudio,
        averaged: MMAudio | None,
        batch: Batch,
        generator: torch.Generator,
        progress: float,
        batch_slice: BatchSlice,
    ) -> Terms:
        return train_step(
            model,
            plain,
            teacher,
            batch,
            method,
            generator=generator,
            progress=progress,
            batch_slice=batch_slice,
            averaged=averaged,
        )

    guidance = method.velocity.reference_guidance if method.guided_from < 1 else Guidance()
    reference = Reference(net=teacher, digest=teacher_digest, guidance=guidance)
    return TrainingTask(
        kind="student",
        config=config,
        loop=config.loop,
        data=open_sets(config.data, config.repeat, codec),
        features=config.data[0],
        codec=codec,
        net=student,
        step=step,
        evaluate=HeldOut(config.data[0], codec, config.loop.evaluation, run=run, teacher=reference, scores=scores),
        best=BEST_STUDENT,
        averaged_targets=method.objective.needs.averaged,
        float32_only=method.objective.needs.derivative == "difference",
        frozen=(teacher,),
        digests=_digests(config.data) | digests | start.digests,
        licence=start.licence,
        publish=publish,
    )


def _student(config: DistillRun, teacher: MMAudio, codec: AudioCodec, weights_dir: Path | None) -> InitialNetwork:
    """The network to train: an earlier run's, or a new one from the teacher. Its weights may be used as both allow."""
    method, licence = config.method, inherited_licence(config.teacher)
    guidance_embedding = method.velocity.guidance_input
    if config.student is None:
        student = student_from_teacher(
            teacher,
            seed=config.loop.seed,
            guidance_embedding=guidance_embedding,
            velocity_head=method.velocity_head,
            time_embedding=method.time_embedding,
        )
        return InitialNetwork(net=student, codec=codec, licence=licence, digests={})
    wanted = student_config(
        teacher.config,
        guidance_embedding=guidance_embedding,
        velocity_head=method.velocity_head,
        time_embedding=method.time_embedding,
    )
    auto = method.time_embedding == "auto"
    resumed = resumed_student(
        config.student, teacher, wanted, codec, config.data[0], any_times=auto, weights_dir=weights_dir
    )
    lines = dict.fromkeys(line for line in (licence, resumed.licence) if line is not None)
    return replace(resumed, licence="; ".join(lines) or None)


def time_note(config: DistillRun, task: TrainingTask) -> list[str]:
    """One line on what replaces a time embedding too fast to differentiate; none for one that is slow enough."""
    teacher, student = task.frozen[0], task.net
    assert isinstance(teacher, MMAudio)
    if config.student is not None or teacher.t_embed.fastest <= SMOOTH_LIMIT:
        return []
    fastest = f"{teacher.t_embed.fastest:,.0f} rad per unit"
    if not refitted(student.config, teacher.config):
        return [
            f"time embedding: the teacher's, up to {fastest}; at that speed du/dt exceeds the velocity by far: "
            "use method.time_embedding=smooth"
        ]
    clips = min(TIME_FIT_CLIPS, len(task.data))
    batch = task.data.batch(range(clips), generator=torch.Generator().manual_seed(config.loop.seed))
    fit = time_fit(student, teacher, batch.latents, batch.conditions)
    return [
        f"time embedding: {fastest} in the teacher, {student.t_embed.fastest:,.0f} in the student, fitted; it misses "
        f"{fit.variation:.1%} of what varies with t, and the velocity at r = t starts {fit.velocity:.1%} off: "
        "train at r = t first (docs/methods/recipes.md)"
    ]


def open_sets(
    folders: tuple[Path, ...], repeat: tuple[int, ...], codec: AudioCodec, *, modalities: Modalities = "AVT+AT"
) -> JointSet:
    """The training splits of feature folders as one set, in the units of the codec's statistics."""
    statistics = (codec.latent_mean, codec.latent_std)
    return JointSet.open(folders, "train", repeat=repeat, modalities=modalities, statistics=statistics)


def _digests(folders: tuple[Path, ...]) -> dict[str, str]:
    return {"features": "+".join(file_sha256(folder / "features.json")[:12] for folder in folders)}
