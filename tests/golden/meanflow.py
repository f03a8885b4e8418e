"""Recordings of MeanFlow losses and time samplers, reproduced through the objective, guidance, loss, samplers and
densities of the package. Only the closed-form networks are built here.

Images enter as latents (B, 1, C H W): the recorded networks flatten them in row-major order anyway.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from meanflow.derivative import ForwardAD
from meanflow.guidance import MixedGuidance
from meanflow.loss import AdaptiveL2, squared_error
from meanflow.objectives import MeanFlow, StudentCalls
from meanflow.path import interpolate, velocity
from meanflow.sampling import sample, time_grid
from meanflow.shapes import AverageVelocity, u_only
from meanflow.time_sampling import Capped, LogitNormal, MixedTimes, Ordered, other_clock
from tests.golden.deviation import Deviation, relative
from tests.golden.recipe import Recording

FLOAT32 = 2e-6
"""Ten times what two implementations of the same sums differ by."""
FLOAT64 = 2e-14
FLOAT32_GRID = 6e-8
"""Sampling in float64 on a grid that was built in float32."""

Tensors = dict[str, Tensor]


def image_network(p: Tensors, label: Tensor | None = None) -> AverageVelocity:
    """u = W2 tanh(W1 x + t a + (t - r) b + E[label] + c) + d on images as (B, 1, D)."""

    def u(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        inner = x[:, 0] @ p["W1"].T + t[:, None] * p["a"] + (t - r)[:, None] * p["b"] + p["c"]
        inner = inner if label is None else inner + p["E"][label]
        return (inner.tanh() @ p["W2"].T + p["d"])[:, None]

    return u


def sequence_network(p: Tensors, text: Tensor, text_c: Tensor) -> AverageVelocity:
    """u_n = W2 tanh(W1 x_n + M mean(x) + t a + r b + P mean(text) + Q text_c + c) + d on (B, N, C)."""

    def u(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        per_row = x.mean(1) @ p["M"].T + t[:, None] * p["a"] + r[:, None] * p["b"] + text.mean(1) @ p["P"].T
        inner = x @ p["W1"].T + (per_row + text_c @ p["Q"].T + p["c"])[:, None]
        return inner.tanh() @ p["W2"].T + p["d"]

    return u


@dataclass(frozen=True)
class Numbers:
    """A recording's tensors in one precision."""

    recording: Recording
    dtype: torch.dtype

    def given(self, name: str) -> Tensor:
        return self.recording.tensors[f"in.{name}"].to(self.dtype)

    def image(self, name: str) -> Tensor:
        """An input (B, ...) as (B, 1, D)."""
        return self.given(name).flatten(1)[:, None]

    def rows(self, name: str, n: int) -> Tensor:
        """An input that is the same for all n rows."""
        stored = self.given(name)
        return stored.expand(n, *stored.shape)

    def parameters(self) -> Tensors:
        """Fresh leaves: the recording's own tensors stay as they are."""
        return {n: p.to(self.dtype, copy=True).requires_grad_() for n, p in self.recording.parameters().items()}


def objective_step(
    network: Callable[[Tensors, Tensor | None], AverageVelocity],
    parameters: Tensors,
    state: tuple[Tensor, Tensor, Tensor],
    v: Tensor,
    loss: AdaptiveL2,
) -> Tensors:
    """One MeanFlow step at state (x_t, r, t) towards the velocity v: prediction, derivative, target, losses, gradients.

    `network(parameters, rows)` is u on the conditions of these rows.
    """
    x_t, r, t = state
    fixed = {name: p.detach() for name, p in parameters.items()}
    calls = StudentCalls(
        train=lambda rows: u_only(network(parameters, rows)), plain=lambda rows: u_only(network(fixed, rows))
    )
    residual = MeanFlow()(calls, x_t, r, t, v)
    per_sample = residual.loss(loss)
    per_sample.mean().backward()
    error = loss.error(residual.delta.detach())
    made = {
        "u": residual.u,
        "dudt": ForwardAD()(network(fixed, None), x_t, r, t, v),  # the objective itself skips rows with r = t
        "u_target": residual.u - residual.delta.detach(),
        "squared_error_per_sample": error,
        "weight_per_sample": loss.weight(error),
        "loss_per_sample": per_sample.detach(),
        "loss_mean": per_sample.detach().mean(),
    }
    return made | {f"grad.{name}": p.grad for name, p in parameters.items() if p.grad is not None}


def meanflow_py(recording: Recording) -> Iterator[Deviation]:
    """The loss without guidance, summed over images, and one step of sampling; both precisions."""
    config = recording.document["config"]
    loss = AdaptiveL2(p=float(config["norm_p"]), c=float(config["norm_eps"]), reduction="sum")

    def make(numbers: Numbers) -> Tensors:
        x, e, t, r = numbers.image("x"), numbers.image("e"), numbers.given("t"), numbers.given("r")
        p, x_t, v = numbers.parameters(), interpolate(x, e, t), velocity(x, e)
        made = objective_step(lambda p, rows: image_network(p), p, (x_t, r, t), v, loss)
        with torch.no_grad():
            return made | {"z": x_t, "v": v, "one_step_sample": sample(image_network(p), e, time_grid(1))}

    yield from compared(recording, make)


def meanflow_meanaudio(recording: Recording) -> Iterator[Deviation]:
    """The loss with guidance on sequences, averaged over them, and sampling in several numbers of steps."""
    config = recording.document["config"]
    loss = AdaptiveL2(p=float(config.get("norm_p", 1.0)), c=float(config.get("norm_eps", 1e-3)), reduction="mean")
    w, k = config["w"], config.get("k") or 0.0
    guidance = None if w is None else MixedGuidance(omega=float(w), kappa=float(k))

    def make(numbers: Numbers) -> Tensors:
        x, e, t, r = (numbers.given(name) for name in ("x", "e", "t", "r"))
        p, x_t, v = numbers.parameters(), interpolate(x, e, t), velocity(x, e)
        text, text_c = numbers.given("text_f"), numbers.given("text_f_c")

        def network(p: Tensors, rows: Tensor | None) -> AverageVelocity:
            return sequence_network(p, *((text, text_c) if rows is None else (text[rows], text_c[rows])))

        with torch.no_grad():
            if guidance is not None:
                whole = sequence_network(p, numbers.given("text_f_undrop"), numbers.given("text_f_c_undrop"))
                empty = sequence_network(
                    p, numbers.rows("empty_text_f", len(x)), numbers.rows("empty_text_f_c", len(x))
                )
                v = guidance(v, whole(x_t, t, t), empty(x_t, t, t), t)
            made = {"z": x_t, "v_hat": v}
            for steps in config.get("sample_steps", []):
                grid = torch.linspace(1, 0, steps + 1)  # in float32, as recorded
                made[f"sample.{steps}_steps"] = sample(network(p, None), e, grid)
        made |= objective_step(network, p, (x_t, r, t), v, loss)
        return made | {f"autograd_jvp.{name}": value for name, value in made.items()}

    yield from compared(recording, make)


def meanflow_jax(recording: Recording) -> Iterator[Deviation]:
    """The loss with omega and kappa on an interval, the first rows' labels dropped, and sampling on a given grid."""
    config = recording.document["config"]
    loss = AdaptiveL2(p=float(config["norm_p"]), c=float(config["norm_eps"]), reduction="sum")
    interval = (float(config["t_start"]), float(config["t_end"]))
    guidance = MixedGuidance(omega=float(config["omega"]), kappa=float(config["kappa"]), interval=interval)

    def make(numbers: Numbers) -> Tensors:
        x, e, t, r = numbers.image("x"), numbers.image("e"), numbers.given("t"), numbers.given("r")
        p, x_t, v = numbers.parameters(), interpolate(x, e, t), velocity(x, e)
        label = numbers.given("y").long()
        null = torch.full_like(label, config["num_classes"])
        num_dropped = int((numbers.given("drop_uniform") < config["class_dropout_prob"]).sum())
        dropped = torch.arange(len(x)) < num_dropped
        shown = torch.where(dropped, null, label)

        def network(p: Tensors, rows: Tensor | None) -> AverageVelocity:
            return image_network(p, shown if rows is None else shown[rows])

        with torch.no_grad():
            v_cond, v_uncond = (image_network(p, y)(x_t, t, t) for y in (label, null))
            v_g = torch.where(dropped[:, None, None], v, guidance(v, v_cond, v_uncond, t))
            made = {"z": x_t, "v": v, "v_guided": v_g}
            made["sample"] = sample(image_network(p, label), e, numbers.given("sample_times"))
        made |= objective_step(network, p, (x_t, r, t), v_g, loss)
        return made | {"v_loss_per_sample": squared_error(made["u"] - v, "sum")}

    yield from compared(recording, make)


def time_samplers(recording: Recording) -> Iterator[Deviation]:
    """Pairs of times from recorded draws: MeanFlow's two on CIFAR-10, MeanAudio's; and MMAudio's single time."""
    c = {name: float(value) for name, value in recording.document["config"].items() if not isinstance(value, str)}
    given = {name.removeprefix("in."): tensor for name, tensor in recording.tensors.items()}
    draws = (given["normal_t"], given["normal_r"])
    t, r = LogitNormal(mean=c["P_mean_t"], scale=c["P_std_t"]), LogitNormal(mean=c["P_mean_r"], scale=c["P_std_r"])
    alone = LogitNormal(mean=c["mmaudio_mean"], scale=c["mmaudio_scale"])
    both = LogitNormal(mean=c["mu"], scale=c["sigma"])
    made = {"mmaudio.t": alone.at(draws[0])}
    for name, pairs in (("v0", Ordered(first=t, second=r)), ("v1", Capped(late=t, early=r))):
        times = MixedTimes(pairs=pairs, fm_fraction=1 - c["ratio"], assign="independent")
        made[f"{name}.r"], made[f"{name}.t"] = times.at(*draws, given["uniform"])
    times = MixedTimes(pairs=Ordered(first=both), fm_fraction=c["flow_ratio"])
    made["meanaudio.r"], made["meanaudio.t"] = times.at(*draws, given["permutation"].argsort())
    for name in recording.document["outputs"]:
        yield _deviation(recording, name, made, FLOAT32)
    for name in ("v0", "v1", "meanaudio"):
        if f"out.{name}.r" in recording.tensors:
            equal = recording.tensors[f"out.{name}.r"] == recording.tensors[f"out.{name}.t"]
            wrong = ((made[f"{name}.r"] == made[f"{name}.t"]) != equal).sum()
            yield Deviation(f"{name}: rows with r = t that differ", float(wrong), 0.0)
    if "out.mmaudio.t" in recording.tensors:
        turned = 1 - other_clock(alone).at(-draws[0])
        yield relative("mmaudio.t in the other clock", turned, recording.tensors["out.mmaudio.t"], FLOAT32)


def compared(recording: Recording, make: Callable[[Numbers], Tensors]) -> Iterator[Deviation]:
    """One deviation for every recorded output, made in its precision; infinite for one that nothing here makes."""
    names = list(recording.document["outputs"])
    for prefix, dtype, tolerance in (("", torch.float64, FLOAT64), ("f32.", torch.float32, FLOAT32)):
        wanted = [name for name in names if name.startswith("f32.") == bool(prefix)]
        if not wanted:
            continue
        made = {f"{prefix}{name}": value for name, value in make(Numbers(recording, dtype)).items()}
        for name in wanted:
            on_grid = "sample." in name and dtype == torch.float64
            yield _deviation(recording, name, made, FLOAT32_GRID if on_grid else tolerance)


def _deviation(recording: Recording, name: str, made: Tensors, tolerance: float) -> Deviation:
    if name not in made:
        return Deviation.missing(name)
    recorded, value = recording.tensors[f"out.{name}"], made[name]
    if value.ndim == 3 and value.numel() == recorded.numel():  # images were flattened
        value = value.reshape(recorded.shape)
    return relative(name, value, recorded, tolerance)
