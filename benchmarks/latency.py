"""One step against 25 guided ones, and the vocoder against its plain form: `python -m benchmarks.latency`.

Random weights in the published sizes (values do not change the cost), everything in one process, the forms of a stage
taking turns. Both sides use the same weights.

    straightforward   25 Euler steps, at each the conditional and the unconditional prediction one after the other,
                      conditions encoded anew in every forward
    one step          teacher.sampling.generator with one jump: conditions encoded once, guided predictions in one batch
    plain             anti-aliased activation as padded transposed convolution and convolution per channel with the
                      signal at twice the rate between, weights normalised in every call ("folded": once)

Asserts that plain and fast sound agree to 1e-3 of full scale and to 1e-3 of its root mean square. Prints Markdown.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eval.ledger import NumberTable, record
from eval.speed.budget import StageCost, with_totals
from eval.speed.cost import count
from eval.speed.roofline import roofline_of
from eval.speed.stages import random_stages
from eval.speed.timing import machine
from meanflow import Guidance
from teacher.audio.alias_free import SNAKE_EPS, SnakeBeta, kaiser_sinc_filter
from teacher.audio.vae import VAE, VAE_16K, VAE_44K
from teacher.audio.vocoder import BIGVGAN_16K, BIGVGAN_V2_44K, BigVGAN, with_toom_cook
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import MMAudio
from teacher.network.variants import variant
from teacher.network.velocity import student_velocity
from teacher.sampling.generator import SamplingConfig, generate, noise

SLOW = "25 guided steps, straightforward"
STEPS, TEACHER_OMEGA, STUDENT_OMEGA = 25, 4.5, 1.4
NEEDED_FLOW, NEEDED_SOUND, AGREEMENT = 40.0, 1.5, 1e-3


@dataclass(kw_only=True)
class Form:
    """One implementation of a stage; `wall` and `cpu` collect its seconds."""

    stage: str
    name: str
    dtype: torch.dtype
    call: Callable[[], Any]
    cost: StageCost | None = None
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        self.call()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


class PlainVocoder:
    """BigVGAN written from its formulas, with the weights of a folded one: w = g v / ||v||, v = w, g = ||w||."""

    def __init__(self, vocoder: BigVGAN, *, folded: bool) -> None:
        self.vocoder, self.folded = vocoder, folded
        convs = [m for m in vocoder.modules() if isinstance(m, nn.Conv1d | nn.ConvTranspose1d)]
        self.gain: dict[nn.Module, Tensor] = {m: m.weight.flatten(1).norm(dim=1)[:, None, None] for m in convs}

    def weight(self, conv: nn.Module) -> Tensor:
        v: Tensor = conv.weight  # type: ignore[assignment]
        return v if self.folded else self.gain[conv] * v / v.flatten(1).norm(dim=1)[:, None, None]

    def conv(self, conv: nn.Module, x: Tensor) -> Tensor:
        if isinstance(conv, nn.ConvTranspose1d):
            return functional.conv_transpose1d(x, self.weight(conv), conv.bias, conv.stride, conv.padding)  # type: ignore[arg-type]
        assert isinstance(conv, nn.Conv1d)
        return functional.conv1d(x, self.weight(conv), conv.bias, 1, conv.padding, conv.dilation)

    def act(self, act: SnakeBeta, x: Tensor) -> Tensor:
        taps = kaiser_sinc_filter().to(x).expand(x.shape[1], 1, -1)
        padded = functional.pad(x, (5, 5), mode="replicate")
        u = 2 * functional.conv_transpose1d(padded, taps, stride=2, groups=x.shape[1])[..., 15:-15]
        alpha, beta = (p.exp()[None, :, None] for p in (act.alpha, act.beta))
        u = u + 1.0 / (beta + SNAKE_EPS) * torch.sin(u * alpha) ** 2
        return functional.conv1d(functional.pad(u, (5, 6), mode="replicate"), taps, stride=2, groups=x.shape[1])

    def __call__(self, mel: Tensor) -> Tensor:
        v, kinds = self.vocoder, len(self.vocoder.config.resblock_kernel_sizes)
        x = self.conv(v.conv_pre, mel)
        for stage, up in enumerate(v.ups):
            x = self.conv(up[0], x)  # type: ignore[index]
            x = sum(self.block(b, x) for b in v.resblocks[stage * kinds : (stage + 1) * kinds]) / kinds  # type: ignore[assignment]
        wave = self.conv(v.conv_post, self.act(v.activation_post.act, x))
        return torch.tanh(wave) if v.config.tanh_at_final else wave.clamp(-1, 1)

    def block(self, block: Any, x: Tensor) -> Tensor:
        acts = [a.act for a in block.activations]
        for i, (first, second) in enumerate(zip(block.convs1, block.convs2, strict=True)):
            y = self.conv(first, self.act(acts[2 * i], x))
            x = x + self.conv(second, self.act(acts[2 * i + 1], y))
        return x


def straightforward(net: MMAudio, conditions: Conditions, e: Tensor) -> Tensor:
    """x <- x - v / 25 with v = v_u + omega (v_c - v_u); every step takes two forwards, conditions included."""
    x, nothing = e, conditions.unconditional()
    for k in range(STEPS):
        t = e.new_full((len(e),), 1 - k / STEPS)
        v_cond, v_uncond = (
            student_velocity(net, x, t, t, net.encode_conditions(given, x.shape[1])) for given in (conditions, nothing)
        )
        x = x - (v_uncond + TEACHER_OMEGA * (v_cond - v_uncond)) / STEPS
    return x


def flow_forms(net: MMAudio, duration_s: float) -> list[Form]:
    """Per precision: straightforward, one step without and with guidance. bfloat16: weights cast on both sides."""
    given = Conditions.empty(1, duration_s)
    has = torch.ones(1, dtype=torch.bool)
    clip, sync, text = (
        functional.normalize(torch.randn(f.shape), dim=-1) for f in (given.clip, given.sync, given.text)
    )
    given = replace(given, clip=clip, sync=sync, text=text, has_clip=has, has_sync=has, has_text=has)
    e = noise([0], net.config.sequence.latent_frames(duration_s), net.config.latent_channels)
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        n = net if dtype == torch.float32 else copy.deepcopy(net).to(dtype)

        def one(n: MMAudio = n, omega: float = 1.0) -> Tensor:
            return generate(n, given, e, SamplingConfig(guidance=Guidance(omega=omega)))

        def many(n: MMAudio = n) -> Tensor:
            return straightforward(n, given, e)

        made.append(Form(stage="flow network", name=SLOW, dtype=dtype, call=many))
        made.append(Form(stage="flow network", name="one step", dtype=dtype, call=one))
        guided = f"one step, guidance {STUDENT_OMEGA}"
        made.append(Form(stage="flow network", name=guided, dtype=dtype, call=partial(one, omega=STUDENT_OMEGA)))
    return made


def sound_forms(vae: VAE, vocoder: BigVGAN, latent: Tensor) -> tuple[list[Form], dict[str, Tensor]]:
    """Latent decode (one form for both sides) and the forms of the vocoder; and their waves."""
    half_vae, half = copy.deepcopy(vae).bfloat16(), copy.deepcopy(vocoder).bfloat16()
    single, double = torch.float32, torch.bfloat16
    mel = vae.decode(latent)
    forms = [Form(stage="latent decode", name="eager", dtype=single, call=lambda: vae.decode(latent))]
    forms += [Form(stage="latent decode", name="eager", dtype=double, call=lambda: half_vae.decode(latent.bfloat16()))]
    ways: list[tuple[str, torch.dtype, Callable[[Tensor], Tensor]]] = [
        ("plain", single, PlainVocoder(vocoder, folded=False)),
        ("plain, folded weights", single, PlainVocoder(vocoder, folded=True)),
        ("ours", single, vocoder),
        ("ours, fewer products", single, with_toom_cook(vocoder)),
        ("ours", double, lambda m: half(m.bfloat16()).float()),
    ]
    forms += [Form(stage="vocoder", name=n, dtype=d, call=partial(way, mel)) for n, d, way in ways]
    return forms, {f"{n}, {_name(d)}": way(mel) for n, d, way in ways}


def agreement(waves: dict[str, Tensor]) -> NumberTable:
    """Largest deviation of every wave from the plain one; those in float32 must be within AGREEMENT."""
    reference = waves["plain, float32"]
    rms = float(reference.square().mean().sqrt())
    rows = []
    for name, wave in waves.items():
        off = float((wave - reference).abs().max())
        rows.append((name, off, off / rms))
        assert name.endswith("bfloat16") or off <= AGREEMENT * min(1.0, rms), f"{name} differs by {off}"
    titles = ("vocoder", "largest difference, of full scale", "of the rms of the wave")
    return NumberTable(columns=titles, formats=("", ".0e", ".0e"), rows=tuple(rows))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def table(forms: list[Form], against: dict[str, Form]) -> NumberTable:
    """A row per form; its ratio to the slow form of its stage in float32 and, where there is one, in its precision."""
    rows = []
    for f in forms:
        assert f.cost is not None
        flops, floor = f.cost.flops, roofline_of(f.dtype, "cpu").floor_s(f.cost.flops, f.cost.bytes)
        wall, cpu = statistics.median(f.wall), statistics.median(f.cpu)
        base = against.get(f"{f.stage}, {_name(f.dtype)}")
        ratios = (_ratio(base.wall, f.wall), _ratio(base.cpu, f.cpu)) if base else (None, None)
        rows.append(
            (f.stage, f.name, _name(f.dtype), flops / 1e9, 1e3 * floor, 1e3 * wall, 1e3 * cpu, wall / floor, *ratios)
        )
    return NumberTable(
        columns=(
            "stage", "form", "precision", "GFLOP", "floor ms", "wall ms", "CPU ms", "over floor", "faster by wall",
            "by CPU",
        ),
        formats=("", "", "", ".1f", ".0f", ".0f", ".0f", ".1f", ".2f", ".2f"),
        rows=tuple(rows),
    )  # fmt: skip


def _ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(slow) / statistics.median(fast)


def totals(columns: dict[str, list[Form]], duration_s: float) -> NumberTable:
    """Sums of medians by scope, in wall-clock seconds with the real-time factor."""
    found = []
    for forms in columns.values():
        wall = with_totals({f.stage: statistics.median(f.wall) for f in forms})
        found.append({s: f"{wall[s]:.2f} s, RTF {wall[s] / duration_s:.3f}" for s in wall})
    scopes = ("generator only", "noise to wave", "text-to-audio")
    rows = tuple((scope, *(column[scope] for column in found)) for scope in scopes)
    return NumberTable(columns=("scope", *columns), formats=("",) * (len(columns) + 1), rows=rows)


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="small_16k")
    parser.add_argument("--duration-s", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3, help="calls of every form, in turns")
    parser.add_argument("--short", type=int, default=5, help="calls of the short forms in each round")
    parser.add_argument("--record", type=Path, help="also write the figures to this file of the ledger")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = replace(variant(args.variant), interval_embedding=True)
    model = random_stages(config, name=args.variant, encoders="text")
    net, encode = model.generator.net, model.text
    assert encode is not None
    small = config.latent_channels == 20
    vae = VAE(VAE_16K if small else VAE_44K, part="decoder").normalise_().eval().requires_grad_(False)
    vocoder = BigVGAN(BIGVGAN_16K if small else BIGVGAN_V2_44K).eval().requires_grad_(False)
    vocoder.conv_post.weight.mul_(5)  # a wave of audible size and open activations: differences mean something
    for name, parameter in vocoder.named_parameters():
        if ".act." in name:
            parameter.normal_(std=0.3)
    latent = noise([0], config.sequence.latent_frames(args.duration_s), config.latent_channels).transpose(1, 2)

    on = machine()
    print(
        f"{args.variant}, {args.duration_s:g} s, batch 1; {on.threads} of {on.device}, torch {on.torch_version}; ",
        end="",
    )
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores before\n")
    flow = flow_forms(net, args.duration_s)
    sound, waves = sound_forms(vae, vocoder, latent)
    text = Form(stage="text encoder", name="CLIP text tower", dtype=torch.float32, call=lambda: encode(["a dog barks"]))
    agreed = agreement(waves)
    print(agreed.markdown())
    forms = [text, *flow, *sound]
    for f in forms:  # counted while they run for the first time; 25 guided steps are 50 times one
        f.cost = None if f.name == SLOW else count(f.call).cost
    for f in flow:
        f.cost = f.cost or _times(2 * STEPS, next(g for g in flow if g.dtype == f.dtype and g.cost).cost)
    for _ in range(args.rounds):
        for f in forms:
            for _ in range(1 if f.stage == "vocoder" or f.name == SLOW else args.short):
                f.run()
    print(f"\nload {os.getloadavg()[0]:.1f} after; rates: ", end="")
    for dtype in (torch.float32, torch.bfloat16):
        rates = roofline_of(dtype, "cpu")
        print(f"{_name(dtype)} {rates.flops_per_s / 1e9:.0f} GFLOP/s, {rates.bytes_per_s / 1e9:.1f} GB/s; ", end="")
    pick = {(f.stage, f.name, _name(f.dtype)): f for f in forms}
    plain = pick["vocoder", "plain", "float32"]
    against = {f"flow network, {_name(f.dtype)}": f for f in flow if f.name == SLOW}
    stages = table(forms, against | {"vocoder, float32": plain, "vocoder, bfloat16": plain})
    print(f"\n{stages.markdown()}\n")
    decode = pick["latent decode", "eager", "float32"]
    fast = pick["vocoder", "ours, fewer products", "float32"]
    one, many = pick["flow network", "one step", "float32"], pick["flow network", flow[0].name, "float32"]
    halves = [f for f in forms if f.dtype == torch.bfloat16 and f.name in ("one step", "eager", "ours")]
    columns = {
        "straightforward, plain": [text, many, decode, plain],
        "one step": [text, one, decode, fast],
        "one step, guided": [text, pick["flow network", flow[2].name, "float32"], decode, fast],
        "one step, bfloat16": [text, *halves],
    }
    scopes = totals(columns, args.duration_s)
    print(f"{scopes.markdown()}\n")
    goals = []
    for what, slow, quick, needed in (
        ("one step against 25 guided", [many], [one], NEEDED_FLOW),
        ("latent decode + vocoder against plain", [decode, plain], [decode, fast], NEEDED_SOUND),
    ):
        by = [sum(statistics.median(x) for x in s) for s in _clocks(slow)]
        to = [sum(statistics.median(x) for x in s) for s in _clocks(quick)]
        wall, cpu = by[0] / to[0], by[1] / to[1]
        goals.append((what, needed, wall, cpu, "met" if min(wall, cpu) >= needed else "missed"))
    titles = ("times faster", "aimed at", "by wall", "by CPU", "")
    reached = NumberTable(columns=titles, formats=("", "g", ".2f", ".2f", ""), rows=tuple(goals))
    print(reached.markdown())
    if args.record:
        found = {"agreement": agreed, "stages": stages, "scopes": scopes, "goals": reached}
        record(args.record, tables=found)


def _clocks(forms: list[Form]) -> tuple[list[list[float]], list[list[float]]]:
    return [f.wall for f in forms], [f.cpu for f in forms]


def _times(n: int, cost: StageCost | None) -> StageCost:
    assert cost is not None
    return StageCost(flops=n * cost.flops, bytes=n * cost.bytes, traffic=n * cost.traffic, operators=n * cost.operators)


if __name__ == "__main__":
    main()
