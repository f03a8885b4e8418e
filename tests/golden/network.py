"""Every recorded output of the flow network, made again through the functions that training and sampling use."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from meanflow.derivative import ForwardAD
from meanflow.guidance import Guidance
from meanflow.path import interpolate, jump, velocity
from meanflow.sampling import euler, time_grid
from teacher.network.conditions import Conditions
from teacher.network.embeddings import Rotary
from teacher.network.mmaudio import Encoded, MMAudio
from teacher.network.velocity import Guide
from teacher.sampling.generator import SamplingConfig, generate
from tests.golden.deviation import Deviation, relative
from tests.golden.recipe import Recording, masked, recorded_conditions, recorded_network

Made = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A recording with its network and its conditions, present and absent."""

    recording: Recording
    net: MMAudio
    conditions: Conditions

    def given(self, name: str) -> Tensor:
        return self.recording.tensors[f"in.{name}"]

    @property
    def config(self) -> dict[str, Any]:
        return self.recording.document["config"]

    def numbers_after(self, prefix: str) -> list[tuple[str, str]]:
        """The names of recorded outputs up to the number that follows this prefix, and that number."""
        found = (re.match(rf"({re.escape(prefix)}(\d+(?:\.\d+)?(?:e-?\d+)?))(?:\.\D|$)", n) for n in self.outputs)
        return list(dict.fromkeys((m[1], m[2]) for m in found if m))

    @property
    def outputs(self) -> list[str]:
        return list(self.recording.document["outputs"])

    @property
    def frames(self) -> int:
        return self.given("latent").shape[1]

    @property
    def negative(self) -> Tensor | None:
        """Features of the negative prompt, (1 or B, tokens, width), if one is recorded."""
        found = self.recording.tensors.get("in.negative_text_f")
        return None if found is None else found.reshape(-1, *self.conditions.text.shape[1:])

    @property
    def absent(self) -> Conditions:
        return self.conditions.unconditional(self.negative)

    def encoded(self, conditions: Conditions) -> Encoded:
        return self.net.encode_conditions(conditions, self.frames)

    def guide(self, strength: float) -> Guide:
        """Below 1 the recorded guidance is the conditional velocity alone, which here is strength 1."""
        guidance = Guidance(omega=max(strength, 1.0), rescale=False)
        twin = self.encoded(self.absent) if guidance.active else None
        return Guide(conditional=self.encoded(self.conditions), unconditional=twin, guidance=guidance)

    def guided(self, strength: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The guided velocity at a state and one recorded time (0 noise, 1 data), exactly that time: through the
        project's clock, 1 - (1 - tau), it would be off by 3e-8, at the second version's 10,000 rad a visible angle."""
        guide = self.guide(strength)

        def predict(x: Tensor, r: Tensor, t: Tensor, encoded: Encoded) -> Tensor:
            return self.net.predict(x, t, encoded)

        return lambda x, tau: guide(predict, x, tau.expand(len(x)), tau.expand(len(x)))


def mmaudio_network(recording: Recording) -> Iterator[Deviation]:
    """One deviation for every output of the recording, infinite where nothing here makes it, and a few facts."""
    case = Case(recording, *recorded_network(recording))
    names = case.outputs
    made: Made = {}
    for part in dict.fromkeys(PARTS[prefix] for prefix in PARTS if any(name.startswith(prefix) for name in names)):
        made |= part(case)
    for name in names:
        if name not in made:
            yield Deviation.missing(name)
        else:
            yield relative(name, made[name], recording.tensors[f"out.{name}"], tolerance(name, case.net))
    yield from other_facts(case)


def tolerance(name: str, net: MMAudio) -> float:
    """Ten times the agreement of two independent implementations. A float32 derivative along t of the second version,
    whose frequencies reach 10,000, is good to 4e-4 only."""
    if name.startswith("f64."):
        return 1e-6 if ".fd." in name else 1e-10
    if name.startswith("f32.jvp.tangent") and net.config.version == "v2":
        return 4e-3
    if ".grad" in name:
        return 6e-5
    return 4e-5 if name.startswith("euler.") else 2e-5


@torch.no_grad()
def evaluation(case: Case) -> Made:
    """The velocity in one call, from encoded conditions, and without conditions."""
    x, t = case.given("latent"), case.given("t")
    return {
        "forward": case.net(x, t, case.conditions),
        "predict_flow": case.net.predict(x, t, case.encoded(case.conditions)),
        "predict_flow_uncond": case.net.predict(x, t, case.encoded(case.absent)),
    }


def tables(case: Case) -> Made:
    """Frequencies, and rotations as matrices (1, N, d / 2, 2, 2)."""
    x = case.given("latent")
    rotations = case.net.rotary_tables(case.frames, case.conditions.clip.shape[1], like=x)
    made = {"table.t_freqs": case.net.t_embed.frequencies(case.given("t"))}
    for name, (cos, sin) in zip(("latent_rot", "clip_rot"), rotations, strict=True):
        made[f"table.{name}"] = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))[None]
    return made


@torch.no_grad()
def traces(case: Case) -> Made:
    """Outputs of inner modules in one conditional evaluation; a joint block's streams by name."""
    with FeatureSource(case.net) as heard:
        case.net(case.given("latent"), case.given("t"), case.conditions)
    made: Made = {}
    for name, out in heard.items():
        streams = zip(("latent", "clip_f", "text_f"), out, strict=True) if isinstance(out, tuple) else ()
        made |= {f"trace.{name}.{stream}": tensor for stream, tensor in streams} or {f"trace.{name}": out}
    return made


@torch.no_grad()
def encodings(case: Case) -> Made:
    """Projected conditions and their pooled projections, present and absent."""
    made: Made = {}
    for prefix, conditions in (("cond", case.conditions), ("empty_cond", case.absent)):
        with FeatureSource(case.net) as heard:
            encoded = case.encoded(conditions)
        made |= {f"{prefix}.{name}_f": getattr(encoded, name) for name in ("clip", "sync", "text")}
        made |= {f"{prefix}.{name}_f_c": heard[f"{name}_cond_proj"] for name in ("clip", "text")}
    return made


@torch.no_grad()
def guided(case: Case) -> Made:
    """The guided velocity at one time, for every strength."""
    x, tau = case.given("latent"), case.given("ode_t")
    return {name: case.guided(float(s))(x, tau) for name, s in case.numbers_after("ode_wrapper.cfg")}


@torch.no_grad()
def integrations(case: Case) -> Made:
    """Guided Euler steps from noise to data with the states on the way, and conditional ones from data to noise."""
    states: list[Tensor] = []
    steps, v = case.config["euler_steps"], case.guided(case.config["cfg_strengths"][0])
    taus = torch.linspace(0, 1, steps + 1)

    def watched(x: Tensor, t: Tensor) -> Tensor:
        states.append(x)
        return -v(x, taus[len(states) - 1])

    x1 = euler(watched, case.given("x0_noise"), time_grid(steps))
    made = {f"euler.x_after_{k}_steps": state for k, state in enumerate(states)}
    made |= {"euler.x1": x1, "euler.x1_unnormalized": x1 * case.net.latent_std + case.net.latent_mean}
    conditional, back = case.guided(0.0), case.given("x1_raw")
    for tau, after in pairwise(torch.linspace(1, 0, case.config["prior_steps"] + 1)):
        back = jump(back, -conditional(back, tau), (1 - after).expand(len(back)), (1 - tau).expand(len(back)))
    return made | {"euler.to_prior": back}


def training(case: Case) -> Made:
    """The loss of teacher.flow_matching with recorded draws, and its gradients.

    A path that keeps a share sigma of the noise at the data, which is zero here, adds sigma (1 - t) e to the state and
    takes sigma e from the velocity e - x.
    """
    net, e, tau = case.net, case.given("x0_noise"), case.given("t")
    x = (case.given("x1_raw") - net.latent_mean) / net.latent_std
    kept = masked(case.conditions, video=case.given("null_video").bool(), text=case.given("null_text").bool())
    made: Made = {}
    for name, number in case.numbers_after("fm.sigma"):
        sigma = float(number)
        x_t = interpolate(x, e, 1 - tau) + sigma * tau[:, None, None] * e
        v = -net(x_t, tau, kept)
        loss = (v - (velocity(x, e) - sigma * e)).pow(2).flatten(1).mean(1)
        net.zero_grad()
        loss.mean().backward()
        names = case.recording.document["grad_l2_names"]
        values = {
            "x1_normalized": x, "xt": x_t, "pred": -v, "loss_per_sample": loss, "loss_mean": loss.mean(),
            "grad_l2": torch.stack([net.get_parameter(n).grad.norm() for n in names]),
            **{f"grad.{n}": p.grad.clone() for n, p in net.named_parameters() if p.grad is not None},
        }  # fmt: skip
        made |= {f"{name}.{key}": value.detach() for key, value in values.items()}
    return made


def single(case: Case) -> Made:
    """Derivative along (v, 1), float32."""
    return derivatives("f32", case)


def double(case: Case) -> Made:
    """The same in float64 with the recording's float32 tables cast up; its normalisation takes float64's epsilon."""
    eps = torch.finfo(torch.float64).eps
    net = MMAudio(replace(case.net.config, rms_norm_eps=eps)).double()
    net.load_state_dict(case.net.state_dict())
    stored = {n: t.double() for n, t in (case.recording.tensors | _own_tables(case)).items() if ".table." in n}
    net.t_embed.frequencies = lambda t: stored["out.table.t_freqs"]
    rotations = (stored[f"out.table.{name}_rot"][0] for name in ("latent", "clip"))
    made = tuple(Rotary(r[..., 0, 0], r[..., 1, 0]) for r in rotations)
    net.rotary_tables = lambda *lengths, like: made
    tensors = {n: t.double() if t.dtype == torch.float32 else t for n, t in case.recording.tensors.items()}
    recording = Recording(case.recording.document, tensors)
    return derivatives("f64", Case(recording, net, recorded_conditions(recording).to("cpu", torch.float64)))


def _own_tables(case: Case) -> Made:
    """This network's float32 tables, for those the recording lacks."""
    return {f"out.{n}": t for n, t in tables(case).items() if f"out.{n}" not in case.recording.tensors}


@torch.no_grad()
def derivatives(prefix: str, case: Case) -> Made:
    """Value and forward-mode derivative along (v, 1) and along (v, 0), with encoded conditions held fixed."""
    x, tau, v = case.given("latent"), case.given("t"), case.given("tangent_v")
    encoded = case.encoded(case.conditions)
    along = ForwardAD()
    both = along(lambda x, r, t: case.net.predict(x, t, encoded), x, tau, tau, v)
    alone = along(lambda x, r, t: case.net.predict(x, r, encoded), x, tau, tau, v)
    value = case.net.predict(x, tau, encoded)
    return {
        f"{prefix}.predict_flow": value,
        f"{prefix}.jvp.primal": value,
        f"{prefix}.jvp.tangent": both,
        f"{prefix}.jvp.tangent_x_only": alone,
        f"{prefix}.fd.tangent": both,
    }


def other_facts(case: Case) -> Iterator[Deviation]:
    """Number of parameters, names of the trainable ones, gradients that are zero by construction, and
    teacher.sampling.generator.

    Its clock rounds times by 3e-8, which at the 10,000 rad per unit of the second version is 3e-4 rad.
    """
    document, recorded = case.recording.document, case.recording.tensors.get("out.euler.x1")
    total = sum(p.numel() for p in case.net.parameters())
    yield Deviation("parameters too many or too few", abs(total - document["num_parameters_total"]), 0.0)
    if "grad_l2_names" in document:
        trainable = {n for n, p in case.net.named_parameters() if p.requires_grad}
        yield Deviation("trainable names that differ", len(trainable ^ set(document["grad_l2_names"])), 0.0)
        grads = (case.net.get_parameter(n).grad for n in document["zero_gradient_parameters"])
        largest = max((float(g.abs().max()) for g in grads if g is not None), default=0.0)
        yield Deviation("gradients that should be zero", largest, 0.0)
    if recorded is not None:
        made = generate(
            case.net,
            case.conditions,
            case.given("x0_noise"),
            SamplingConfig(
                steps=case.config["euler_steps"], guidance=case.guide(case.config["cfg_strengths"][0]).guidance
            ),
            negative=case.negative,
        )
        yield relative("generate", made, recorded, 4e-5 if case.net.config.version == "v1" else 4e-4)


class FeatureSource:
    """Collects the outputs of all inner modules of a network, by name, while it is entered."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.hooks, self.heard = net, [], {}

    def __enter__(self) -> dict[str, Any]:
        for name, module in self.net.named_modules():
            hook = module.register_forward_hook(lambda _m, _i, out, name=name: self.heard.__setitem__(name, out))
            self.hooks.append(hook)
        return self.heard

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


PARTS: dict[str, Callable[[Case], Made]] = {
    "forward": evaluation,
    "predict_flow": evaluation,
    "table.": tables,
    "trace.": traces,
    "cond.": encodings,
    "empty_cond.": encodings,
    "ode_wrapper.": guided,
    "euler.": integrations,
    "fm.": training,
    "f32.": single,
    "f64.": double,
}
"""Which function makes the outputs whose names start so; each runs only where a recording has such outputs."""
