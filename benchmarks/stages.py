"""Cost of each stage of MMAudio on this machine: `python -m benchmarks.stages --variant small_16k`.

Uses random weights in the published sizes, as values do not change the cost. For the step-independent part of the
network, one evaluation of the network, the latent decoder and the vocoder it prints a Markdown table of FLOPs (2 per
multiply-add, counted on the modules), bytes of weights read, the lower bound on the time that follows from both at this
machine's measured rates, and measured medians in float32 and bfloat16, eager and compiled.
"""

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eval.ledger import NumberTable, record
from eval.speed.budget import Roofline
from eval.speed.cost import count
from eval.speed.roofline import roofline_of
from eval.speed.timing import measure, synchroniser
from teacher.audio.vae import VAE, VAE_16K, VAE_44K
from teacher.audio.vocoder import BIGVGAN_16K, BIGVGAN_V2_44K, BigVGAN
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import Encoded, MMAudio
from teacher.network.variants import variant


@dataclass(frozen=True)
class Stage:
    """One stage: a module and the inputs that are cast with it."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]


@torch.no_grad()
def stages(name: str, duration_s: float, batch: int) -> list[Stage]:
    """The four stages of a published variant with random weights."""
    config = variant(name)
    frames, c = config.sequence.latent_frames(duration_s), Conditions.empty(batch, duration_s)
    net = MMAudio(config).eval()
    vae = VAE(VAE_16K if config.latent_channels == 20 else VAE_44K).eval()
    vae.normalise_()
    vocoder = BigVGAN(BIGVGAN_16K if config.latent_channels == 20 else BIGVGAN_V2_44K).eval()
    return [
        Stage("conditions, once", _Conditions(net, frames), (c.clip, c.sync, c.text)),
        Stage(
            "network, one evaluation",
            _Predict(net),
            (
                torch.randn(batch, frames, config.latent_channels),
                torch.full((batch,), 0.3),
                *net.encode_conditions(c, frames),
            ),
        ),
        Stage("latent decoder", _Decode(vae), (torch.randn(batch, config.latent_channels, frames),)),
        Stage("vocoder", vocoder, (torch.randn(batch, vae.config.data_dim, 2 * frames),)),
    ]


class _Conditions(nn.Module):
    def __init__(self, net: MMAudio, frames: int) -> None:
        super().__init__()
        self.net, self.frames = net, frames

    def forward(self, clip: Tensor, sync: Tensor, text: Tensor) -> Encoded:
        has = torch.ones(len(clip), dtype=torch.bool, device=clip.device)
        c = Conditions(clip=clip, sync=sync, text=text, has_clip=has, has_sync=has, has_text=has)
        return self.net.encode_conditions(c, self.frames)


class _Predict(nn.Module):
    def __init__(self, net: MMAudio) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, *parts: Tensor) -> Tensor:
        return self.net.predict(x, t, Encoded(*parts))


class _Decode(nn.Module):
    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z)


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="small_16k")
    parser.add_argument("--duration-s", type=float, default=8.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--only", default="", help="stages whose name contains this")
    parser.add_argument("--record", type=Path, help="also write the figures to this file of the ledger")
    args = parser.parse_args()
    known = {dtype: roofline_of(dtype, args.device) for dtype in (torch.float32, torch.bfloat16)}
    on = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    rates_said = (
        f"{args.variant}, {args.duration_s:g} s, batch {args.batch}; products "
        f"{known[torch.float32].flops_per_s / 1e9:.0f} GFLOP/s float32, "
        f"{known[torch.bfloat16].flops_per_s / 1e9:.0f} bfloat16; "
        f"memory {known[torch.float32].bytes_per_s / 1e9:.0f} GB/s."
    )
    print(f"{rates_said} {on}, torch {torch.__version__}\n")
    forms = ("eager ms",) if args.no_compile else ("eager ms", "compiled ms")
    measured = []
    for stage in stages(args.variant, args.duration_s, args.batch):
        if args.only not in stage.name:
            continue
        for dtype in (torch.float32, torch.bfloat16):
            measured.append(_row(stage, dtype, known[dtype], args))
            print(*measured[-1], flush=True)
    table = NumberTable(
        columns=("stage", "precision", "GFLOP", "weights MB", "floor ms", *forms, "over floor"),
        formats=("", "", ".1f", ".0f", ".1f", *(".1f" for _ in forms), ".1f"),
        rows=tuple(measured),
    )
    print(f"\n{table.markdown()}")
    if args.record:
        record(args.record, tables={"stages": table}, text={"rates": rates_said})


def _row(stage: Stage, dtype: torch.dtype, known: Roofline, args: argparse.Namespace) -> tuple[str | float, ...]:
    """Name, precision, GFLOP, MB of weights, floor and times in ms, and the best time over the floor."""
    module = copy.deepcopy(stage.module).to(args.device, dtype)
    inputs = [x.to(args.device, dtype) for x in stage.inputs]
    flops, size = count(lambda: module(*inputs)).cost.flops, sum(p.numel() * p.element_size() for p in _used(module))
    floor = known.floor_s(flops, size)

    def seconds(call: nn.Module) -> float:
        timing = measure(lambda: call(*inputs), repeats=args.repeats, synchronise=synchroniser(args.device))
        return timing.median_s

    times = [seconds(module)]
    if not args.no_compile:
        times.append(seconds(torch.compile(module)))
        torch.compiler.reset()
    name = str(dtype).removeprefix("torch.")
    return (stage.name, name, flops / 1e9, size / 1e6, 1e3 * floor, *(1e3 * t for t in times), min(times) / floor)


def _used(module: nn.Module) -> list[nn.Parameter]:
    """The weights a stage reads: not the encoder of the autoencoder, nor the other half of the network."""
    once = ("input_proj", "cond_proj", "global_cond_mlp", "empty_", "sync_pos_emb")

    def reads(name: str) -> bool:
        if isinstance(module, _Decode):
            return not name.startswith("vae.encoder")
        if isinstance(module, _Conditions | _Predict):
            early = any(part in name for part in once) and "audio_input_proj" not in name
            return early == isinstance(module, _Conditions)
        return True

    return [p for n, p in module.named_parameters() if reads(n)]


if __name__ == "__main__":
    main()
