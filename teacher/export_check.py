"""What an exported generator is held against: the eager network on random inputs, in numbers and in seconds."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from meanflow.guidance import Guidance
from teacher.conditions import Conditions
from teacher.exportable import GivenGuidance
from teacher.generate import generate
from teacher.pipeline import Pipeline

INPUTS = ("noise", "clip", "sync", "text", "has_clip", "has_sync", "has_text", "omega")
"""Names in the order of the graph; omega only where the guidance scale is an input."""

Runner: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
"""Inputs in that order -> wave or latents."""


class Parity(NamedTuple):
    """Largest absolute deviation of one file from the eager network, and the root mean square of what was compared."""

    deviation: float
    rms: float


def random_inputs(
    pipeline: Pipeline, duration_s: float, rows: int, with_omega: bool, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Normal noise, features of random directions and length 1 as image and text features are, omega in [1, 2).

    The first row has every modality, in the others each is there by chance.
    """
    blank = Conditions.empty(rows, duration_s)
    frames = pipeline.codec.sequence.latent_frames(duration_s)
    shapes = [torch.Size((rows, frames, pipeline.codec.latent_channels))]
    shapes += [part.shape for part in (blank.clip, blank.sync, blank.text)]
    noise, *features = (torch.randn(shape, generator=generator) for shape in shapes)
    features = [torch.nn.functional.normalize(feature, dim=-1) for feature in features]
    has = [(torch.rand(rows, generator=generator) < 0.5) | (torch.arange(rows) == 0) for _ in range(3)]
    omega = [1.0 + torch.rand(rows, generator=generator)] if with_omega else []
    return (noise, *features, *has, *omega)


def eager(pipeline: Pipeline, guidance: GivenGuidance, inputs: Sequence[Tensor]) -> Tensor:
    """Normalised latents that the project itself makes of the inputs in one step, a row at a time."""
    rows = []
    for row in range(len(inputs[0])):
        noise, clip, sync, text, has_clip, has_sync, has_text, *omega = (x[row : row + 1] for x in inputs)
        conditions = Conditions(
            clip=clip, sync=sync, text=text, has_clip=has_clip, has_sync=has_sync, has_text=has_text
        )
        rule = Guidance(omega=float(omega[0])) if isinstance(guidance, str) else guidance
        rows.append(generate(pipeline.net, conditions, noise, num_steps=1, guidance=rule))
    return torch.cat(rows)


def parity(run: Runner, batches: Sequence[Sequence[Tensor]], wanted: Sequence[Tensor]) -> Parity:
    """Over all batches; NaN where the file gives NaN. Raises ValueError for an answer of another shape."""
    deviations = []
    for inputs, expected in zip(batches, wanted, strict=True):
        made = run(inputs)
        if made.shape != expected.shape:
            raise ValueError(f"the exported file gives {tuple(made.shape)} where {tuple(expected.shape)} was expected")
        deviations.append((made - expected).abs().max())
    rms = torch.cat([x.flatten() for x in wanted]).square().mean().sqrt()
    return Parity(float(torch.stack(deviations).max()), float(rms))


def take_turns(runners: Mapping[str, Runner], inputs: Sequence[Tensor], repeats: int) -> dict[str, float]:
    """Median seconds of each over `repeats` rounds in which every one runs once, after an untimed round."""
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(repeats + 1):
        for name, run in runners.items():
            began = time.perf_counter()
            run(inputs)
            if turn:
                taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def open_onnx(path: Path, threads: int | None = None) -> Runner:
    """An ONNX file on onnxruntime's CPU provider with as many threads as torch has, or `threads`."""
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Tensor]) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=False)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def open_torch(path: Path) -> Runner:
    """An archive of torch.export that this program has written itself: loading one is loading code."""
    module = torch.export.load(path).module()
    return lambda inputs: module(*inputs)
