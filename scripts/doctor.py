"""Examine a module u(x_t, r, t, *conditions) before training it: derivative, precision, frequency, processes, cost."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from meanflow.doctor import ImportPath, admit, examine, recommend, to_json, to_text
from meanflow.doctor.patient import Made
from scripts.errors import one_line_errors
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import FROZEN_PARAMETERS, MMAudio
from teacher.network.sequence import FEATURES_PER_SEGMENT
from teacher.network.velocity import student_velocity, teacher_velocity
from teacher.weights.loading import load_network


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Give --module or --run. Exit status 1 if it finds a fault that would make training fail or diverge."""

    module: str | None = None
    """Import path package.module:factory. The factory returns a module called as module(x_t, r, t), or (module,
    (x_t, r, t, *conditions)) with example inputs of its own."""
    run: Path | None = None
    """Run folder to examine instead of a module: a student (u) or a teacher (v, which ignores r)."""
    batch: int | None = None
    """Rows of the example inputs, at least 2; 4 by default."""
    frames: int | None = None
    """Frames of the example latents; 16 by default (32 with --run)."""
    channels: int | None = None
    """Channels of the example latents; 8 by default. With --run they are those of the network."""
    seed: int = 0
    """Seed of the module, the example inputs and the random draws of the module."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    processes: bool = True
    """Compare gradients of one and two processes, which starts two of them."""
    limit_s: float = 60.0
    """Time limit of one examination in seconds; its results so far are reported."""
    json: Path | None = None
    """Also write all figures to this file, as JSON."""


class Velocity(nn.Module):
    """u(x_t, r, t) of a network of this project, with times as in `meanflow` (1 is noise) and conditions as tensors."""

    def __init__(self, net: MMAudio) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_t: Tensor, r: Tensor, t: Tensor, *features: Tensor) -> Tensor:
        clip, sync, text, has_clip, has_sync, has_text = features
        conditions = Conditions(
            clip=clip, sync=sync, text=text, has_clip=has_clip, has_sync=has_sync, has_text=has_text
        )
        encoded = self.net.encode_conditions(conditions, x_t.shape[1])
        if self.net.config.interval_embedding:
            return student_velocity(self.net, x_t, r, t, encoded)
        return teacher_velocity(self.net, x_t, t, encoded)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Factory for the network of a run folder with random features: row 0 is unconditional, the others have all."""

    run: Path
    batch: int
    frames: int
    seed: int

    def __call__(self) -> Made:
        """The network with the parameters that training trains, except a velocity head, which u does not use."""
        net = load_network(self.run)
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name not in FROZEN_PARAMETERS and not name.startswith("velocity_"))
        how, rows = net.config, self.batch
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        t = 0.5 + 0.45 * torch.rand(rows, generator=generator)
        r = 0.4 * torch.rand(rows, generator=generator)
        segments = max(1, self.frames // 10)  # 31 latent frames and 3 segments of 8 synchronisation features a second
        features = (
            normal(rows, max(1, self.frames // 4), how.clip_dim) / how.clip_dim**0.5,  # unit vectors, as CLIP's are
            normal(rows, FEATURES_PER_SEGMENT * segments, how.sync_dim),
            normal(rows, how.text_tokens, how.text_dim) / how.text_dim**0.5,
        )
        has = torch.arange(rows) > 0
        return Velocity(net).eval(), (normal(rows, self.frames, how.latent_channels), r, t, *features, has, has, has)


@one_line_errors
def cli() -> None:
    """Entry point."""
    args = tyro.cli(Doctor, description=__doc__)
    if (args.module is None) == (args.run is None):
        raise ValueError("give either --module package.module:factory or --run FOLDER")
    for name, value, least in (("batch", args.batch, 2), ("frames", args.frames, 1), ("channels", args.channels, 1)):
        if value is not None and value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    if not args.limit_s > 0:
        raise ValueError(f"--limit-s must be positive, got {args.limit_s:g}")
    if args.module is not None:
        patient = admit(
            ImportPath(path=args.module), batch=args.batch, frames=args.frames, channels=args.channels, seed=args.seed,
            device=args.device,
        )  # fmt: skip
    elif args.run is not None:
        if args.channels is not None:
            raise ValueError("leave out --channels: with --run they are those of the network")
        source = RunFolder(run=args.run.resolve(), batch=args.batch or 4, frames=args.frames or 32, seed=args.seed)
        patient = admit(source, seed=args.seed, device=args.device)
    report = examine(patient, limit_s=args.limit_s, processes=args.processes)
    recommendations = recommend(report)
    print(to_text(report, recommendations))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(to_json(report, recommendations) + "\n", encoding="utf-8")
    if not report.healthy:
        sys.exit(1)


if __name__ == "__main__":
    cli()
