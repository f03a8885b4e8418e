"""What each stage of MMAudio costs on this machine: `python -m benchmarks.stages --variant small_16k`.

Random weights in the published sizes (values do not change the cost). For the step-independent part of the network, one
evaluation of the network, the latent decoder and the vocoder: FLOPs (2 per multiply-add, counted on the modules), bytes
of weights read, the floor those two set on this machine's own measured rates, and measured medians in float32 and
bfloat16, eager and compiled. Prints a Markdown table.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eval.ledger import NumberTable, record
from eval.speed.cost import count
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


@dataclass(frozen=True)
class Rates:
    """Measured rates of this machine: products in FLOP/s, streaming reads in bytes/s."""

    flops: dict[torch.dtype, float]
    bytes: float


def seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Median wall time after one untimed call."""
    times = []
    for k in range(repeats + 1):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        if k:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def rates(device: str) -> Rates:
    """A large square product in each precision; a sum over 256 MB."""
    size = 2048 if device == "cpu" else 8192
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device, dtype=dtype)
        found[dtype] = 2 * size**3 / seconds(lambda a=a: a @ a, device, 5)
    block = torch.ones(64 * 2**20, device=device)
    return Rates(found, block.numel() * 4 / seconds(lambda: block.sum(), device, 5))


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
    known = rates(args.device)
    on = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    rates_said = (
        f"{args.variant}, {args.duration_s:g} s, batch {args.batch}; products "
        f"{known.flops[torch.float32] / 1e9:.0f} GFLOP/s float32, {known.flops[torch.bfloat16] / 1e9:.0f} bfloat16; "
        f"reads {known.bytes / 1e9:.0f} GB/s."
    )
    print(f"{rates_said} {on}, torch {torch.__version__}\n")
    forms = ("eager ms",) if args.no_compile else ("eager ms", "compiled ms")
    measured = []
    for stage in stages(args.variant, args.duration_s, args.batch):
        if args.only not in stage.name:
            continue
        for dtype in (torch.float32, torch.bfloat16):
            measured.append(_row(stage, dtype, known, args))
            print(*measured[-1], flush=True)
    table = NumberTable(
        columns=("stage", "precision", "GFLOP", "weights MB", "floor ms", *forms, "over floor"),
        formats=("", "", ".1f", ".0f", ".1f", *(".1f" for _ in forms), ".1f"),
        rows=tuple(measured),
    )
    print(f"\n{table.markdown()}")
    if args.record:
        record(args.record, tables={"stages": table}, text={"rates": rates_said})


def _row(stage: Stage, dtype: torch.dtype, known: Rates, args: argparse.Namespace) -> tuple[str | float, ...]:
    """Name, precision, GFLOP, MB of weights, floor and times in ms, and the best time over the floor."""
    module = copy.deepcopy(stage.module).to(args.device, dtype)
    inputs = [x.to(args.device, dtype) for x in stage.inputs]
    flops, size = count(lambda: module(*inputs)).cost.flops, sum(p.numel() * p.element_size() for p in _used(module))
    floor = max(flops / known.flops[dtype], size / known.bytes)
    times = [seconds(lambda: module(*inputs), args.device, args.repeats)]
    if not args.no_compile:
        compiled = torch.compile(module)
        times.append(seconds(lambda: compiled(*inputs), args.device, args.repeats))
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
