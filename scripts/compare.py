"""Compare student and teacher on video-to-audio and text-to-audio: quality against steps, and time by stage."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from eval.examples import ExampleWriter, write_examples
from eval.hygiene import TestFacts, write_facts
from eval.overlap import find_overlap, read_groups
from eval.rows import Model, Row, Task
from eval.speed import StageTimer, machine_facts, synchroniser, with_totals
from eval.sweep import Generate, KeptAudio, Origin, reference_rows, sweep
from eval.testset import TestSet, TrainingSounds, Unreadable
from meanflow import Guidance
from meanflow.config import digest
from scripts.errors import one_line_errors
from teacher.conditions import Conditions
from teacher.data.dataset import Record
from teacher.data.media import read_frames
from teacher.generate import generate, network_evaluations, noise
from teacher.network import MMAudio
from teacher.pipeline import Pipeline
from teacher.weights import file_digest, weight_file


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Sweep models x steps x seeds; rows already in rows.jsonl with the same configuration are kept."""

    data: Path = Path("runs/demo/features")
    """Extracted features; the test split is used."""
    teacher: Path = Path("runs/demo/teacher")
    student: Path = Path("runs/demo/student")
    out: Path = Path("runs/demo")
    """Folder for rows.jsonl, clips.jsonl, examples.json and media/."""
    steps: tuple[int, ...] = (1, 2, 4, 8, 25)
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[Task, ...] = ("vta", "tta")
    max_clips: int = 96
    """Test clips per task."""
    unreadable: Unreadable = "fail"
    """A test clip that cannot be read: fail, or exclude it for both models and list it. It is never replaced."""
    manifest: Path | None = None
    """Table with a group_id column: clips of one group count as the same source in the overlap with training data."""
    teacher_guidance: float = 1.4
    """Guidance scale of the teacher while sampling; 1 is off."""
    student_guidance: float = 1.4
    """Guidance scale of the student while sampling; 1 is off, one evaluation a step."""
    rescale: bool = True
    """Scalar rescaling of the unconditional prediction under guidance."""
    num_examples: int = 6
    """Clips kept as players on the page."""
    timing_repeats: int = 3
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Compare, description=__doc__)
    models: dict[Model, tuple[Pipeline, Guidance]] = {
        "teacher": (Pipeline.load(args.teacher, device=args.device), _guidance(args.teacher_guidance, args.rescale)),
        "student": (Pipeline.load(args.student, device=args.device), _guidance(args.student_guidance, args.rescale)),
    }
    sounds = TrainingSounds.read(args.data)
    examples: list[dict[str, object]] = []
    for task in args.tasks:
        examples += _task(args, task, models, sounds)
        write_examples(args.out / "examples.json", examples)
    print(f"rows in {args.out / 'rows.jsonl'}")


def _guidance(omega: float, rescale: bool) -> Guidance:
    return Guidance(omega=omega, rescale=rescale)


def _task(
    args: Compare, task: Task, models: dict[Model, tuple[Pipeline, Guidance]], sounds: TrainingSounds
) -> list[dict[str, object]]:
    test = TestSet.build(
        args.data,
        video=task == "vta",
        max_clips=args.max_clips,
        classifier=sounds.classifier,
        label_kind=sounds.label_kind,
        unreadable=args.unreadable,
    )
    groups = None if args.manifest is None else read_groups(args.manifest)
    overlap = find_overlap(test.records, (args.teacher, args.student), groups=groups)
    facts = TestFacts(task=task, ids=test.clips.ids, excluded=test.excluded, overlap=overlap)
    write_facts(args.out, [facts])
    print(f"{task}: {' '.join(facts.sentences())}", flush=True)
    licences = dict.fromkeys(pipeline.licence for pipeline, _ in models.values())
    comment = f"licence of the weights: {' / '.join(licences)}; {args.teacher}, {args.student}"
    keep = KeptAudio(folder=args.out / "media", count=args.num_examples, seed=args.seeds[0], comment=comment)
    rows_path = args.out / "rows.jsonl"
    codec = models["teacher"][0].codec
    origin = _origin(args, test, {"codec": codec.digest, "labels": test.label_kind})
    for row in reference_rows(
        test.scorer,
        reference=test.waves,
        other=sounds.like(len(test.records), video=task == "vta"),
        reconstruction=torch.cat([codec.decode(codec.encode(part)) for part in test.waves.split(32)]),
        tasks=(task,),
        rows_path=rows_path,
        origin=origin,
    ):
        _print(row)
    for model, (pipeline, guidance) in models.items():
        run = args.teacher if model == "teacher" else args.student
        settings = {"weights": file_digest(weight_file(run, "auto")), "guidance": guidance, "codec": codec.digest}
        with tqdm(total=len(args.steps) * len(args.seeds), desc=f"{task} {model}", file=sys.stdout) as progress:
            for row in sweep(
                _generator(pipeline, guidance),
                test.clips,
                task=task,
                model=model,
                steps=args.steps,
                seeds=args.seeds,
                scorer=test.scorer,
                rows_path=rows_path,
                origin=replace(
                    _origin(args, test, settings),
                    params=sum(p.numel() for p in pipeline.net.parameters()),
                    duration_s=pipeline.window_s,
                ),
                guidance=guidance.omega,
                evaluations_per_step=network_evaluations(
                    1, guidance, guided_input=pipeline.net.config.guidance_embedding
                ),
                rtf=_timer(args, task, pipeline, guidance, test.records[0]),
                keep=keep,
            ):
                progress.update()
                progress.write(_line(row))
    writer = ExampleWriter(folder=keep.folder, sample_rate=codec.sequence.sample_rate)
    return writer.examples(task, test.records, test.waves, keep)


def _generator(pipeline: Pipeline, guidance: Guidance) -> Generate:
    def make(conditions: Conditions, steps: int, seeds: Sequence[int]) -> Tensor:
        frames = pipeline.codec.sequence.latent_frames(pipeline.window_s)
        e = noise(seeds, frames, pipeline.codec.latent_channels).to(pipeline.device)
        latents = generate(pipeline.net, conditions.to(pipeline.device), e, num_steps=steps, guidance=guidance)
        return pipeline.codec.decode(latents.float().cpu())

    return make


def _timer(
    args: Compare, task: Task, pipeline: Pipeline, guidance: Guidance, record: Record
) -> Callable[[int], dict[str, float]]:
    """Real-time factors at batch 1 for a number of steps, on one test clip."""
    duration_s = pipeline.window_s
    timer = StageTimer(audio_s=duration_s, synchronise=synchroniser(args.device))
    fixed: dict[str, float] = {}

    def rtf(steps: int) -> dict[str, float]:
        with torch.no_grad():
            if not fixed:
                fixed.update(_fixed_stages(args, task, pipeline, record, timer))
            conditions = pipeline.conditions(None, record.caption, [0.0], duration_s).to(pipeline.device)
            e = noise([0], pipeline.codec.sequence.latent_frames(duration_s), pipeline.codec.latent_channels)
            flow = _flow(pipeline.net, conditions, e.to(pipeline.device), steps, guidance)
            timer.measure("flow network", flow, repeats=args.timing_repeats)
            return with_totals(fixed | {"flow network": timer.timings["flow network"].rtf(duration_s)})

    return rtf


def _flow(net: MMAudio, conditions: Conditions, e: Tensor, steps: int, guidance: Guidance) -> Callable[[], object]:
    return lambda: generate(net, conditions, e, num_steps=steps, guidance=guidance)


def _fixed_stages(args: Compare, task: Task, pipeline: Pipeline, record: Record, timer: StageTimer) -> dict[str, float]:
    """Stages that do not depend on the number of steps."""
    encoders, latent = pipeline.encoders, torch.zeros(1, 1, pipeline.codec.latent_channels)
    frames = pipeline.codec.sequence.latent_frames(pipeline.window_s)
    calls: dict[str, Callable[[], object]] = {
        "text encoder": lambda: encoders.text([record.caption]),
        "codec decode": lambda: pipeline.codec.decode(latent.expand(1, frames, -1)),
    }
    if task == "vta":
        path, requests = Path(record.path), (encoders.image.request, encoders.sync.request)
        shown = read_frames(path, requests, start_s=record.start_s, duration_s=record.duration_s)
        calls |= {
            "decode+resize": lambda: read_frames(path, requests, start_s=record.start_s, duration_s=record.duration_s),
            "image encoder": lambda: encoders.image(shown[0]),
            "motion encoder": lambda: encoders.sync(shown[1]),
        }
    for stage, call in calls.items():
        timer.measure(stage, call, repeats=args.timing_repeats)
    return {stage: timer.timings[stage].rtf(timer.audio_s) for stage in calls}


def _origin(args: Compare, test: TestSet, settings: dict[str, object]) -> Origin:
    clips = {"ids": list(test.clips.ids), "extractor": test.scorer.extractor.name, "labels": test.label_kind}
    return Origin(
        config_digest=digest(settings | {"clips": clips}),
        run_id=str(args.out.name),
        command=f"python -m scripts.compare {shlex.join(sys.argv[1:])}".strip(),
        machine=machine_facts(args.device),
    )


def _line(row: Row) -> str:
    shown = ("frechet", "kl", "inception_score", "onset_f1")
    scores = "  ".join(f"{name} {row.metrics[name]:.3f}" for name in shown if name in row.metrics)
    return f"{row.task} {row.model:9s} {row.steps:2d} steps, seed {row.seed}: {scores}"


def _print(row: Row) -> None:
    print(_line(row), flush=True)


if __name__ == "__main__":
    cli()
