"""Make sound for videos and/or from words: writes WAV or FLAC, and each video again with its new sound."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro

from meanflow import Adaptive, Guidance
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
    """Sampling steps; each is one network evaluation, two under guidance."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 is off."""
    rescale: bool = True
    """Rescale the unconditional prediction by the scalar s* (keeps one-step guidance from distorting)."""
    solver: Literal["euler", "heun", "adaptive"] = "euler"
    """Integrator of a teacher. adaptive (Dormand-Prince 5(4)) chooses its own steps to meet --tolerance."""
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
    pipeline = Pipeline.load(
        args.run, weights=args.weights, weights_dir=args.weights_dir, device=args.device, precision=args.precision
    )
    adaptive = Adaptive(rtol=args.tolerance, atol=args.tolerance)
    sampling = SamplingConfig(
        steps=args.steps,
        guidance=Guidance(omega=args.guidance, rescale=args.rescale),
        seed=args.seed,
        solver=adaptive if args.solver == "adaptive" else args.solver,
    )
    failed = [video for video in args.video or (None,) if not _one(pipeline, args, sampling, video)]
    if failed:
        print(f"{len(failed)} of {len(args.video)} videos failed; the others are in {args.out}", file=sys.stderr)
        sys.exit(1)


def _one(pipeline: Pipeline, args: Sample, sampling: SamplingConfig, video: Path | None) -> bool:
    """One sound; a bad video among several is named and counted, and the rest go on."""
    scalars: list[float] = []
    try:
        wave = pipeline.sound(
            video=video,
            prompt=args.prompt,
            negative_prompt=args.negative_prompt,
            duration_s=args.duration_s,
            sampling=sampling,
            observe=lambda s: scalars.extend(s.tolist()),
        )
        name = _file_name(video, args.prompt)
        rate = pipeline.codec.sequence.sample_rate
        comment = f"licence of the weights: {pipeline.licence}; {args.run}, {_method(args)}, seed {args.seed}"
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
    print(f"{len(wave) / rate:.2f} s of sound, {_method(args)}{note}: {', '.join(made)}")
    return True


def _method(args: Sample) -> str:
    steps = f"adaptive to {args.tolerance:g}" if args.solver == "adaptive" else f"{args.steps} step(s)"
    return f"{steps}, guidance {args.guidance:g}"


def _file_name(video: Path | None, prompt: str | None) -> str:
    if video is not None:
        return video.stem
    words = "".join(c if c.isalnum() else " " for c in prompt or "").split()
    return "_".join(words)[:80] or "sound"


if __name__ == "__main__":
    cli()
