"""Do two processes on half a batch each agree with one process on the whole? Gradients under DistributedDataParallel.

Every process follows this project's pattern: the derivative without a graph on the plain module, then one ordinary
forward through the wrapper, loss = mean over rows ||u - sg[v - (t - r) du/dt]||^2. Equal halves make the mean of the
two gradients the gradient of the whole, unless rows see each other (batch normalisation) or draw random numbers.
"""

import contextlib
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from meanflow.doctor.patient import Made, Patient, interval_times, map_tensors, relative, tensors_in
from meanflow.doctor.verdict import Verdict, figure, one_line

SMALL = 1e-4
"""Parameters whose gradient is below this fraction of the largest are left out of the relative deviations."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Largest relative deviations; None where something was not run."""

    dtype: str
    gradient: float | None
    """Largest relative deviation of a parameter's gradient, two processes against one."""
    parameter: str
    """Name of the parameter with that deviation."""
    ranks: float | None
    """Largest relative deviation of a gradient between the two processes, which an all-reduce makes equal."""
    random: float
    """Relative change of u under another seed: dropout, noise."""
    rows: float
    """Relative change of u on the first half of the batch when the second is left out: batch statistics."""
    unused: tuple[str, ...]
    """Trainable parameters that get no gradient, for which data-parallel wrappers need find_unused_parameters."""
    error: str
    verdict: Verdict


def examine_processes(patient: Patient, *, forward_mode: bool = True, limit_s: float = 120.0) -> Processes:
    """One process here, two fresh ones on the CPU; an error in those ends in one line.

    forward_mode: False for a module that ForwardAD refuses; the target is then v, as in plain flow matching.
    """
    fine = replace(patient.reference(), source=None)
    fine = _on_cpu(fine).rows(slice(0, len(fine.x_t) // 2 * 2))
    half = slice(0, len(fine.x_t) // 2)
    with torch.no_grad():
        u = fine.u(fine.x_t, fine.r, fine.t)
        random = relative(replace(fine, seed=fine.seed + 1).u(fine.x_t, fine.r, fine.t), u)
        part = fine.rows(half)
        rows = relative(part.u(part.x_t, part.r, part.t), u[half])
    weights = {name: a.detach().clone() for name, a in fine.module.state_dict().items()}
    whole, unused = gradients(fine, fine.module, forward_mode)
    answers: list[dict[str, Tensor]] = []
    error = ""
    if patient.source is None:
        error = "left out: not asked for, or no factory to call in another process"
    elif not whole:
        error = "no parameter is trainable"
    else:
        job = _Job(source=patient.source, forward_mode=forward_mode, unused=bool(unused), seed=patient.seed)
        answers, error = _two(job, fine, weights, limit_s)
    gradient, name, ranks = None, "", None
    if answers:
        floor = SMALL * max(float(a.norm()) for a in whole.values())
        deviations = {
            key: relative(answers[0].get(key, torch.zeros_like(a)), a) for key, a in whole.items() if a.norm() > floor
        }
        name = max(deviations, key=lambda key: deviations[key])
        gradient = deviations[name]
        ranks = max(relative(answers[1].get(key, torch.zeros_like(a)), a) for key, a in answers[0].items())
    found = Processes(
        dtype=str(fine.x_t.dtype).removeprefix("torch."), gradient=gradient, parameter=name, ranks=ranks,
        random=random, rows=rows, unused=unused, error=error, verdict=Verdict(level="unknown", line=error),
    )  # fmt: skip
    return found if error else replace(found, verdict=_verdict(found))


def gradients(patient: Patient, wrapped: nn.Module, forward_mode: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(gradient of every parameter that has one, names of the trainable ones that do not)."""
    target = patient.v - interval_times(patient, patient.dudt()) if forward_mode else patient.v
    u = patient.call(wrapped, patient.x_t, patient.r, patient.t)
    patient.module.zero_grad(set_to_none=True)
    (u - target).pow(2).flatten(1).sum(1).mean().backward()
    named = {name: a for name, a in patient.module.named_parameters() if a.requires_grad}
    found = {name: a.grad.detach().clone() for name, a in named.items() if a.grad is not None}
    return found, tuple(name for name in named if name not in found)


@dataclass(frozen=True, kw_only=True)
class _Job:
    source: Callable[[], Made]
    forward_mode: bool
    unused: bool
    seed: int


def _two(job: _Job, fine: Patient, weights: dict[str, Tensor], limit_s: float) -> tuple[list[dict[str, Tensor]], str]:
    """Gradients of both processes, or nothing and what went wrong."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as name:
        folder = Path(name)
        tensors = {"x_t": fine.x_t, "r": fine.r, "t": fine.t, "v": fine.v, "weights": weights}
        torch.save(tensors | {"conditions": list(tensors_in(fine.conditions))}, folder / "given.pt")
        context = _fresh_processes()
        children = [context.Process(target=_child, args=(rank, folder, job), daemon=True) for rank in range(2)]
        deadline = time.monotonic() + limit_s
        try:
            for child in children:
                child.start()
            while any(child.is_alive() for child in children) and time.monotonic() < deadline:
                time.sleep(0.02)
                if any(child.exitcode not in (None, 0) for child in children):
                    break  # the other one would wait for it in vain
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            return [], f"the factory cannot be sent to another process: {one_line(error)}"
        finally:
            children = [child for child in children if child.pid is not None]
            late = any(child.exitcode is None for child in children) and time.monotonic() >= deadline
            for child in children:
                if child.is_alive():
                    child.terminate()
                child.join(5)
        if late:  # first: a process that lost its ended partner may have reported that
            return [], f"two processes gave no answer within {limit_s:g} s"
        failures = [(folder / f"error-{rank}").read_text() for rank in range(2) if (folder / f"error-{rank}").exists()]
        if failures:
            return [], f"a second process failed: {failures[0]}"
        if any(child.exitcode != 0 for child in children):
            codes = [child.exitcode for child in children]
            return [], f"two processes ended with codes {codes}; call the doctor under `if __name__ == '__main__'`"
        return [torch.load(folder / f"gradients-{rank}.pt", weights_only=True) for rank in range(2)], ""


def _fresh_processes() -> SpawnContext | ForkServerContext:
    """Processes that inherit nothing: forked off a server that has only imported torch, where the system has that.

    The second pair then starts in a fraction of a second. `torch.func.jvp` imports torch._dynamo at its first call.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])
    return context


def _child(rank: int, folder: Path, job: _Job) -> None:
    """One of the two: the module made anew, the same weights, its half of the rows."""
    try:
        torch.set_num_threads(1)
        given = torch.load(folder / "given.pt", weights_only=True)
        torch.manual_seed(job.seed)
        made = job.source()
        module, inputs = made if isinstance(made, tuple) else (made, ())
        dtype = given["x_t"].dtype
        module = module.to("cpu", dtype)
        module.load_state_dict(given["weights"])
        tensors = iter(given["conditions"])
        whole = Patient(
            module=module, x_t=given["x_t"], r=given["r"], t=given["t"], v=given["v"], seed=job.seed,
            conditions=map_tensors(lambda _: next(tensors), tuple(inputs[3:])),
        )  # fmt: skip
        size = len(whole.x_t) // 2
        mine = whole.rows(slice(rank * size, (rank + 1) * size))
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
        wrapped = DistributedDataParallel(mine.module, find_unused_parameters=job.unused)
        found, _ = gradients(mine, wrapped, job.forward_mode)
        torch.save(found, folder / f"gradients-{rank}.pt")
        with contextlib.suppress(RuntimeError):  # the answer is written; the barrier only keeps one from leaving early
            dist.barrier()
        # Taking the wrapper and the group apart in the ordinary way hangs about one time in ten.
        os._exit(0)
    except Exception as error:  # the parent has no other way to learn of it
        (folder / f"error-{rank}").write_text(one_line(error))


def _on_cpu(patient: Patient) -> Patient:
    x_t, r, t, v = (a.cpu() for a in (patient.x_t, patient.r, patient.t, patient.v))
    conditions = map_tensors(lambda a: a.cpu(), patient.conditions)
    return replace(patient, module=patient.module.cpu(), x_t=x_t, r=r, t=t, v=v, conditions=conditions)


def _verdict(found: Processes) -> Verdict:
    """Rounding alone gives 1e-15 in float64 and, after cancellation, up to 1e-3 in float32."""
    gradient, ranks = found.gradient or 0.0, found.ranks or 0.0
    limit = 1e-6 if found.dtype == "float64" else 1e-3
    if gradient > limit or ranks > limit:
        why = " (u is random)" if found.random > limit else " (rows see each other)" if found.rows > limit else ""
        line = f"gradients of two processes deviate by {figure(gradient)}, at {found.parameter}{why}"
        return Verdict(level="bad", line=line)
    if found.unused:
        line = f"gradients agree to {figure(gradient)}; without gradient: {', '.join(found.unused[:3])}"
        return Verdict(level="warn", line=line)
    return Verdict(level="ok", line=f"gradients of one and two processes agree to {figure(gradient)}")
