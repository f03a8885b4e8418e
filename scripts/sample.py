"""Make sound for videos and/or from words: writes WAV or FLAC, and each video again with its new sound."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro

from meanflow import Adaptive, Guidance
from meanflow.guidance import GuidanceRule, Guided, JointGuidance, default_omega
from scripts.errors import one_line_errors
from teacher.data.media import remux, write_audio
from teacher.pipeline import Pipeline, Precision, SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Sample a teacher or a student. With --video the sound lasts as long as the video, else --duration-s."""

    run: Path = Path("runs/demo/student")
    """Run folder of a student (or a teacher; then use more --steps)."""
    video: tuple[Path, ...] = ()
    """One or more videos of any frame rate, size and length."""
    prompt: str | None = None
    """What to hear; with --video, the words go with every video."""
    negative_prompt: str | None = None
    """What not to hear; acts through --guidance."""
    duration_s: float | None = None
    """Seconds of sound for a prompt alone, or a limit for videos."""
    steps: int = 1
    """Sampling steps; each is one network evaluation, two under guidance, three with --guidance-video/-text."""
    guidance: float | Literal["auto"] = 1.0
    """Classifier-free guidance scale; 1 is off. auto takes 1.4 for 1 step, rising to 4.5 for 25 or more (and adaptive
    steps), meant for the published weights."""
    guidance_video: float | None = None
    """Separate scale for the video, instead of --guidance; 1 is off and goes with --guidance-text alone."""
    guidance_text: float | None = None
    """Separate scale for the words, likewise."""
    rescale: bool = True
    """Rescale the unconditional prediction by the scalar s* (limits the spread of guided steps)."""
    std_rescale: float = 0.0
    """Bring the standard deviation of guided predictions back to that of the conditional ones: 0 not, 1 wholly."""
    parallel: float = 1.0
    """Projected guidance: weight of the part of the guidance along the conditional prediction; 1 is off."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times that are guided, from 0 (sound) to 1 (noise); steps that start elsewhere are not."""
    solver: Literal["euler", "heun", "midpoint", "adaptive"] = "euler"
    """Integrator of a teacher; heun and midpoint take two evaluations a step, adaptive (Dormand-Prince 5(4)) chooses
    its own steps to meet --tolerance."""
    shift: float = 1.0
    """Above 1 smaller steps near the noise, below 1 near the sound."""
    zero_init_steps: int = 0
    """First steps that leave the noise as it is (CFG-Zero*); of 25 or more steps."""
    tolerance: float = 1e-3
    """Relative and absolute error of a step of the adaptive solver."""
    seed: int = 0
    weights: str = "auto"
    """Which weights of the run: model, ema-0.05, ...; auto takes the narrowest average."""
    out: Path = Path("runs/samples")
    """Folder for the results."""
    format: str = field(default="flac")
    """flac or wav."""
    weights_dir: Path | None = None
    """Folder of codec and encoder files, where it is not the one the run folder names."""
    precision: Precision = "float32"
    """Arithmetic of the network: float32; bfloat16 (float32 weights and state); demo (bfloat16 throughout, as MMAudio's
    own demo)."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Sample, description=__doc__)
    if args.format not in ("flac", "wav"):
        raise ValueError(f"--format must be flac or wav, got {args.format!r}")
    if not args.video and args.prompt is None:
        raise ValueError("give --video, --prompt or both")
    if len({video.stem for video in args.video}) < len(args.video):
        raise ValueError(
            "two videos share a file name, and so would their results; sample them into separate --out folders"
        )
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: this torch finds no CUDA device; use --device cpu")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file; give a folder")
    sampling = sampling_config(args)
    pipeline = Pipeline.load(
        args.run, weights=args.weights, weights_dir=args.weights_dir, device=args.device, precision=args.precision
    )
    failed = [video for video in args.video or (None,) if not _one(pipeline, args, sampling, video)]
    if failed:
        print(f"{len(failed)} of {len(args.video)} videos failed; the others are in {args.out}", file=sys.stderr)
        sys.exit(1)


def sampling_config(args: Sample) -> SamplingConfig:
    """What the flags say about sampling. Raises ValueError for flags that do not go together."""
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
        raise ValueError("--guidance-video and --guidance-text go with neither --guidance nor --parallel")
    return JointGuidance(
        video=1.0 if args.guidance_video is None else args.guidance_video,
        text=1.0 if args.guidance_text is None else args.guidance_text,
        rescale=args.rescale,
        std_rescale=args.std_rescale,
        interval=args.guidance_interval,
    )


def _one(pipeline: Pipeline, args: Sample, sampling: SamplingConfig, video: Path | None) -> bool:
    """One sound; a bad video among several is named and counted, and the rest go on."""
    scalars: list[float] = []
    clamped: list[bool] = []

    def observe(guided: Guided) -> None:
        scalars.extend(guided.s_star.flatten().tolist())
        clamped.extend(guided.clamped.flatten().tolist())

    try:
        wave = pipeline(
            video=video,
            prompt=args.prompt,
            negative_prompt=args.negative_prompt,
            duration_s=args.duration_s,
            seeds=sampling.seed,
            sampling=sampling,
            observe=observe,
        )[0].wave
        name = _file_name(video, args.prompt)
        rate = pipeline.codec.sequence.sample_rate
        comment = f"licence of the weights: {pipeline.licence}; {args.run}, {sampling}, seed {args.seed}"
        sound = args.out / f"{name}.{args.format}"
        write_audio(sound, wave.numpy(), rate, comment=comment)
        made = [str(sound)]
        if video is not None:
            film = args.out / f"{name}.mp4"
            remux(video, wave.numpy(), rate, film, duration_s=args.duration_s, comment=comment)
            made.append(str(film))
    except ValueError as error:
        if len(args.video) < 2:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return False
    note = f", s* {sum(scalars) / len(scalars):.3f}" if scalars else ""
    note += f" ({sum(clamped) / len(clamped):.0%} clamped)" if any(clamped) else ""
    print(f"{len(wave) / rate:.2f} s of sound, {sampling}{note}: {', '.join(made)}")
    return True


def _file_name(video: Path | None, prompt: str | None) -> str:
    if video is not None:
        return video.stem
    words = "".join(c if c.isalnum() else " " for c in prompt or "").split()
    return "_".join(words)[:80] or "sound"


if __name__ == "__main__":
    cli()
