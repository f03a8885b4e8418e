"""Write the one-step generator for other programs: an ONNX file and/or torch.export's archive, checked and described.

The graph takes noise and features of the project's encoders (`has_clip` and so on flag what is given) and returns sound
for a codec of MMAudio's, else latents for `open_codec(RUN / "codec.safetensors").decode`. The check
is part of the command: a file whose output differs from the network's is removed, and the exit status is 2. ONNX is the
format for exchange; loading a .pt2 is loading code, so load none that you did not write yourself. With onnxruntime:

    import json
    import numpy as np
    import onnxruntime
    about = json.load(open("export.json"))
    session = onnxruntime.InferenceSession("generator.onnx", providers=["CPUExecutionProvider"])
    shapes = {i["name"]: [2 if n == "batch" else n for n in i["shape"]] for i in about["inputs"]}
    feed = {i["name"]: np.zeros(shapes[i["name"]], i["dtype"]) for i in about["inputs"]}
    feed["noise"] = np.random.default_rng(0).standard_normal(shapes["noise"], np.float32)
    feed["text"][0], feed["has_text"][0] = 0.01, True  # features of one prompt; the second sound has no condition
    made = session.run(None, feed)[0]  # (2, samples) at about["sample_rate"], or latents (2, frames, channels)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from meanflow import Guidance
from scripts.errors import one_line_errors
from teacher.sampling.export import ExportConfig, Format, export_generator
from teacher.sampling.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a student's generator for one duration."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder of a student."""
    out: Path
    """Folder for the files; new or empty."""
    format: Format = "onnx"
    """onnx, torch (a .pt2 archive), or both."""
    guidance: float | Literal["input"] = 1.0
    """Guidance scale fixed in the graph, 1 is off; input makes it one more input, a number for every sound."""
    batch: int | Literal["dynamic"] = "dynamic"
    """Sounds per call; dynamic accepts any number."""
    seconds: float | None = None
    """Duration of the sound, fixed in the graph; without it, the one the network was trained on."""
    weights: str = "auto"
    """Which weights of the run: model, ema-0.05, ...; auto takes the narrowest average."""
    weights_dir: Path | None = None
    """Folder of codec and encoder files, when it is not the one recorded in the run folder."""
    tolerance: float | None = None
    """Largest deviation that is accepted; 1e-3 for sound and 1e-4 for latents unless given."""
    timing: int = 0
    """Rounds in which the network and each file are timed in turn on one sound; 0 is none."""


def export_config(args: Export) -> ExportConfig:
    """The export configuration that the flags describe. Raises ValueError for a wrong value."""
    return ExportConfig(
        formats=args.format,
        guidance="input" if args.guidance == "input" else Guidance(omega=args.guidance),
        batch=None if args.batch == "dynamic" else args.batch,
        duration_s=args.seconds,
        tolerance=args.tolerance,
        repeats=args.timing,
    )


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Export, description=__doc__)
    config = export_config(args)
    pipeline = Pipeline.load(args.run, weights=args.weights, weights_dir=args.weights_dir)
    out = export_generator(pipeline, args.out, config)
    print(
        f"{', '.join(sorted(path.name for path in out.iterdir()))} in {out}; licence of the weights: {pipeline.licence}"
    )


if __name__ == "__main__":
    cli()
