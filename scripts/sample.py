"""Make sound for videos and/or text prompts: WAV, FLAC, Ogg or MP3, and each video again with its new sound.

mf-sample --video holiday.mov --guidance 1.4                       one film; also folders, "films/*.mp4" and manifests
mf-sample --prompt "a glass ball bounces" --seed 1 --format mp3    a prompt without video
mf-sample --video a.mp4 --best-of 8                                the one of eight whose onsets follow the picture best
mf-sample --video a.mp4 --stems "footsteps" "rain"                 a sound for each text, and their mix

Results of an earlier call are replaced; a file that this program did not make is not, nor a film that was given. Files
appear whole, so any number of calls may write into one folder; a later result of the same name replaces the earlier.

Exit status: 0 all made, 1 some inputs failed and are named, 2 nothing made or wrong input.
"""

import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from eval.compare.ranker import RANKING, Ranker, Score
from eval.features.published_models import PublishedModels
from meanflow import Adaptive, Guidance
from meanflow.guidance import GuidanceRule, Guided, JointGuidance, default_omega
from scripts.errors import one_line_errors
from teacher.encoders.cache import EncodedCache
from teacher.sampling.jobs import Job, JobRunner, Rank, check_stems, jobs
from teacher.sampling.pipeline import Pipeline, Precision, SamplingConfig, Scene


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample a teacher or a student. With --video the sound lasts as long as the video, else --duration-s."""

    run: Path = Path("runs/demo/student")
    """Run folder of a student (or a teacher; then use more --steps)."""
    video: tuple[str, ...] = ()
    """Videos of any frame rate, size and length, folders of them, patterns in quotes, or manifests with captions."""
    prompt: str | None = None
    """Text prompt: the sound that is wanted; with --video, it is used with every video."""
    negative_prompt: str | None = None
    """Negative prompt: sound that is not wanted; takes effect through --guidance above 1."""
    duration_s: float | None = None
    """Seconds of sound for a prompt without video, or the longest sound for videos."""
    steps: int = 1
    """Sampling steps; each is one network evaluation, two under guidance, three with --guidance-video/-text."""
    guidance: float | Literal["auto"] = 1.0
    """Classifier-free guidance scale; 1 is off. auto takes 1.4 for 1 step, rising to 4.5 for 25 or more (and adaptive
    steps), meant for the published weights."""
    guidance_video: float | None = None
    """Guidance scale of the video alone, instead of --guidance; 1 is off (set --guidance-text then)."""
    guidance_text: float | None = None
    """Guidance scale of the text alone, instead of --guidance; 1 is off (set --guidance-video then)."""
    rescale: bool = True
    """Rescale the unconditional prediction by the scalar s* (limits the spread of guided steps)."""
    std_rescale: float = 0.0
    """Rescale guided predictions towards the standard deviation of the conditional ones: 0 not at all, 1 fully."""
    parallel: float = 1.0
    """Projected guidance: weight of the component of the guidance parallel to the conditional prediction; 1 is off."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Interval of times under guidance, from 0 (sound) to 1 (noise); steps that start outside it are not guided."""
    solver: Literal["euler", "heun", "midpoint", "adaptive"] = "euler"
    """Integrator of a teacher; heun and midpoint take two evaluations a step, adaptive (Dormand-Prince 5(4)) chooses
    its own steps to meet --tolerance."""
    shift: float = 1.0
    """Shift of the time grid: above 1 the steps near the noise are smaller, below 1 those near the sound."""
    zero_init_steps: int = 0
    """Number of first steps whose velocity is set to zero (CFG-Zero*); meant for 25 or more steps."""
    tolerance: float = 1e-3
    """Tolerance of the adaptive solver: relative and absolute error of a step."""
    seed: int = 0
    best_of: int = 1
    """Number of sounds to generate, of which the best by --score is written; their seeds are seed, seed + 1, ..."""
    score: Score = "motion"
    """Score that --best-of maximises: motion (onsets follow the picture; no weights), or a model given by --judges."""
    judges: PublishedModels = field(default_factory=PublishedModels)
    """Weight files of the published models that --score can use."""
    stems: tuple[str, ...] = ()
    """Texts to use instead of --prompt: one sound for each, and their mix, in separate files."""
    weights: str = "auto"
    """Which weights of the run: model, ema-0.05, ...; auto takes the narrowest average."""
    out: Path = Path("runs/samples")
    """Folder for the results."""
    format: Literal["flac", "wav", "ogg", "mp3"] = "flac"
    film: bool = True
    """Also write each video again with its new sound."""
    json: bool = False
    """Print one line of JSON per sound instead of text."""
    quiet: bool = False
    """Print errors only."""
    verbose: bool = False
    """Also print the time of every sound and the scores of the sounds that were not chosen."""
    weights_dir: Path | None = None
    """Folder of codec and encoder files, when it is not the one recorded in the run folder."""
    precision: Precision = "float32"
    """Arithmetic of the network: float32; bfloat16 (float32 weights and state); demo (bfloat16 throughout, as MMAudio's
    own demo)."""
    fast: bool = False
    """Sample faster with MMAudio's codec, with the same numbers up to rounding: CUDA graphs on a CUDA device, fast
    convolutions in the vocoder on a CPU (0.64 GB more memory)."""
    cache: Path | None = None
    """Folder that caches encoded pictures, so that a video is encoded once for all prompts and seeds."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Sample, description=__doc__)
    _check(args)
    made = jobs(args.video, args.prompt if not args.stems else args.stems[0])
    check_stems(made, args.stems)
    sampling = sampling_config(args)
    pipeline = Pipeline.load(
        args.run, weights=args.weights, weights_dir=args.weights_dir, device=args.device, precision=args.precision
    )
    if args.fast:
        pipeline = replace(pipeline, fast=True)
    if args.cache is not None:
        pipeline = replace(pipeline, cache=EncodedCache(folder=args.cache))
    inputs = frozenset(job.video.resolve() for job in made if job.video is not None)
    failed = [job for job in made if not _one(pipeline, args, sampling, job, inputs, alone=len(made) == 1)]
    if failed:
        others = "nothing was made" if len(failed) == len(made) else f"the others are in {args.out}"
        print(f"{len(failed)} of {len(made)} inputs failed; {others}", file=sys.stderr)
        sys.exit(2 if len(failed) == len(made) else 1)


def _check(args: Sample) -> None:
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: this torch finds no CUDA device; use --device cpu")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file; give a folder")
    if args.stems and args.prompt is not None:
        raise ValueError("--stems replace --prompt: give one or the other")
    if any(not text.strip() for text in (*args.stems, *([] if args.prompt is None else [args.prompt]))):
        raise ValueError("--prompt and --stems must not be empty; leave --prompt out for sound from the picture alone")
    if args.best_of < 1:
        raise ValueError(f"--best-of must be at least 1, got {args.best_of}")
    if args.quiet and (args.json or args.verbose):
        raise ValueError("--quiet cannot be combined with --json or --verbose")


def sampling_config(args: Sample) -> SamplingConfig:
    """The sampling configuration that the flags describe. Raises ValueError for flags that exclude each other."""
    return SamplingConfig(
        steps=args.steps,
        guidance=_guidance(args),
        seed=args.seed,
        solver=Adaptive(rtol=args.tolerance, atol=args.tolerance) if args.solver == "adaptive" else args.solver,
        shift=args.shift,
        zero_init_steps=args.zero_init_steps,
    )


def _guidance(args: Sample) -> GuidanceRule:
    if args.guidance_video is None and args.guidance_text is None:
        steps = 25 if args.solver == "adaptive" else args.steps
        return Guidance(
            omega=default_omega(steps) if args.guidance == "auto" else args.guidance,
            rescale=args.rescale,
            std_rescale=args.std_rescale,
            parallel=args.parallel,
            interval=args.guidance_interval,
        )
    if args.guidance != 1.0 or args.parallel != 1.0:
        raise ValueError("--guidance-video and --guidance-text cannot be combined with --guidance or --parallel")
    return JointGuidance(
        video=1.0 if args.guidance_video is None else args.guidance_video,
        text=1.0 if args.guidance_text is None else args.guidance_text,
        rescale=args.rescale,
        std_rescale=args.std_rescale,
        interval=args.guidance_interval,
    )


def _one(
    pipeline: Pipeline, args: Sample, sampling: SamplingConfig, job: Job, inputs: frozenset[Path], *, alone: bool
) -> bool:
    """Run one job; of several, a failing one is reported and counted, and the others continue."""
    scalars: list[float] = []
    clamped: list[bool] = []

    def observe(guided: Guided) -> None:
        scalars.extend(guided.s_star.flatten().tolist())
        clamped.extend(guided.clamped.flatten().tolist())

    def rank(scene: Scene) -> Rank:
        if scene.video is None and RANKING[args.score].tasks == ("vta",):
            raise ValueError(
                f"--score {args.score} compares sound with a picture; for words alone use clap_laion, clap_ms or pam"
            )
        return Ranker.load(args.score, args.judges, duration_s=scene.total_s, device=pipeline.device).values

    runner = JobRunner(
        pipeline=pipeline,
        sampling=sampling,
        observe=observe,
        negative_prompt=args.negative_prompt,
        duration_s=args.duration_s,
        count=args.best_of,
        rank=rank,
        folder=args.out,
        suffix=args.format,
        film=args.film,
        inputs=inputs,
    )
    began = time.perf_counter()
    try:
        results = runner.stems(job, args.stems) if args.stems else [runner.make(job)]
    except (ValueError, OSError) as error:
        if alone:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return False
    seconds = time.perf_counter() - began
    note = f", s* {sum(scalars) / len(scalars):.3f}" if scalars else ""
    note += f" ({sum(clamped) / len(clamped):.0%} clamped)" if any(clamped) else ""
    for result in results:
        if args.json:
            print(json.dumps(result.plain() | {"seconds": round(seconds, 3)}), flush=True)
        elif not args.quiet:
            chosen = f", seed {result.seed} of {args.best_of} by {args.score}" if args.best_of > 1 else ""
            line = f"{result.duration_s:.2f} s of sound, {sampling}{note}{chosen}: {', '.join(map(str, result.files))}"
            print(line, flush=True)
            if args.verbose:
                scores = "".join(f"; seed {seed} {value:.3f}" for seed, value in result.scores)
                print(f"  {seconds:.2f} s, {seconds / result.duration_s:.3f} of real time{scores}", flush=True)
    return True


if __name__ == "__main__":
    cli()
