"""Measure the cost of one sound by stage: times, FLOPs, bytes, the machine's lower bound and real-time factors."""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from eval.ledger import record
from eval.report.budgets import batch_markdown, budget_markdown
from eval.speed.measure import measure_budget
from eval.speed.stages import EncoderSet, StagedGenerator, Workload, random_stages
from meanflow import Guidance
from scripts.errors import one_line_errors
from teacher.features.dataset import FeatureSet
from teacher.network.variants import variant
from teacher.sampling.pipeline import Pipeline, Precision


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Time a run (--run) or a published size with random weights (--variant), alone or with decoding and encoders."""

    run: Path | None = None
    """Run folder of a teacher or student."""
    variant: str | None = None
    """Published size with random weights, such as small_16k; needs no files, as times do not depend on the values."""
    encoders: EncoderSet = "text"
    """With --variant: CLIP's text tower, all encoders (4 GB, minutes on a CPU) or none. --run uses those of the run."""
    data: Path | None = None
    """Extracted features: clips of the test split are decoded and their captions encoded."""
    video: tuple[Path, ...] = ()
    """Videos to decode instead of --data. Without either, nothing is decoded and encoders get random frames."""
    prompt: str | None = None
    """Prompt to encode; by default a caption of the data, or a sentence of seven words."""
    duration_s: float | None = None
    """Seconds of one clip; by default the duration that the run was trained on, or 8 s for a published size."""
    steps: tuple[int, ...] = (1, 25)
    guidance: tuple[float, ...] = (1.0,)
    """Guidance scales; 1 is off and takes one evaluation per step, others take two."""
    batch: tuple[int, ...] = (1, 8)
    """Batch sizes: 1 measures the latency of a clip, more the throughput."""
    repeats: int | None = None
    """Timed calls per stage; by default 50 on a GPU and 5 on a CPU."""
    warmup: int | None = None
    """Untimed calls before the timed ones, at least 1; by default 10 on a GPU and 1 on a CPU."""
    dtype: Precision = "float32"
    """Arithmetic of the network, as --precision of mf-sample; encoders and decoders compute in float32."""
    tf32: bool = False
    """Let a GPU round float32 products to TF32, as MMAudio does."""
    fast: bool = False
    """With --run: time the fast form of its generator, as --fast of mf-sample."""
    weights_dir: Path | None = None
    """Folder of codec and encoder files, when it is not the one recorded in the run folder."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    out: Path = Path("runs/speed/budget.json")
    """JSON file for the budget; the same as a table is written beside it with the ending .md."""
    record: Path | None = None
    """Also write the tables to this file of the ledger (results/NAME.json)."""


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Speed, description=__doc__)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: this torch finds no CUDA device; use --device cpu")
    if args.out.suffix == ".md":
        raise ValueError(f"--out is the JSON file, its table gets the ending .md, got {args.out}")
    if args.tf32:
        torch.set_float32_matmul_precision("high")
    on_gpu = args.device.startswith("cuda")
    model, window_s = _model(args)
    budget = measure_budget(
        model,
        _workload(args, args.duration_s or window_s),
        steps=args.steps,
        guidance=tuple(Guidance(omega=omega) for omega in args.guidance),
        batches=args.batch,
        warmup=(10 if on_gpu else 1) if args.warmup is None else args.warmup,
        repeats=(50 if on_gpu else 5) if args.repeats is None else args.repeats,
        command=f"python -m scripts.speed {shlex.join(sys.argv[1:])}".strip(),
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    budget.write(args.out)
    text = budget_markdown(budget)
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    if args.record is not None:
        record(args.record, text={f"batch-{batch}": batch_markdown(budget, batch) for batch in budget.batches})
    print(f"{text}\n{args.out} and {args.out.with_suffix('.md')}")


def _model(args: Speed) -> tuple[StagedGenerator, float]:
    """The stages to time, and the duration in seconds that they were trained for."""
    if (args.run is None) == (args.variant is None):
        raise ValueError("give either --run or --variant")
    if args.fast and args.run is None:
        raise ValueError("--fast goes with --run")
    if args.run is not None:
        pipeline = Pipeline.load(args.run, weights_dir=args.weights_dir, device=args.device, precision=args.dtype)
        pipeline = replace(pipeline, fast=args.fast)
        return StagedGenerator.of_pipeline(pipeline, str(args.run)), pipeline.window_s
    name = args.variant or ""
    config = variant(name)
    return random_stages(config, name=name, encoders=args.encoders, device=args.device, precision=args.dtype), 8.0


def _workload(args: Speed, duration_s: float) -> Workload:
    if args.data is not None and args.video:
        raise ValueError("give either --data or --video")
    windows, captions = tuple((path, 0.0) for path in args.video), [args.prompt] if args.prompt else []
    if args.data is not None:
        records = [r for r in FeatureSet.open(args.data, "test").records if r.has_video][: max(args.batch)]
        if not records:
            raise ValueError(f"{args.data} has no test clips with picture")
        windows = tuple((Path(r.path), r.start_s) for r in records)
        captions = captions or [r.caption for r in records]
    workload = Workload(duration_s=duration_s, windows=windows, random_frames=True)
    return replace(workload, captions=tuple(captions)) if captions else workload


if __name__ == "__main__":
    cli()
