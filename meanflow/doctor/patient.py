"""The module under examination, u(x_t, r, t, *conditions), with example inputs, always handled through copies; and the
tensors in its arguments and results, wherever they stand."""

import copy
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from meanflow.derivative import CentralDifference, ForwardAD
from meanflow.doctor.verdict import one_line
from meanflow.shapes import expand_right

Made: TypeAlias = nn.Module | tuple[nn.Module, tuple[Any, ...]]
"""What a factory returns: the module, or the module and its example inputs (x_t, r, t, *conditions)."""


@dataclass(frozen=True, kw_only=True)
class ImportPath:
    """A factory by its import path, "package.module:factory"; picklable, so that another process can call it too."""

    path: str

    def __call__(self) -> Any:  # a `Made`, if the user's factory keeps to it
        """Import and call. Raises ValueError in one line whatever goes wrong in either."""
        module_name, _, name = self.path.partition(":")
        if not module_name or not name.isidentifier():
            raise ValueError(f"a module is given as package.module:factory, got {self.path!r}")
        if os.getcwd() not in sys.path:  # a console command, unlike `python -m`, does not search the present folder
            sys.path.insert(0, os.getcwd())
        # Anything at all may go wrong in a user's file; the answer is always one line.
        try:
            holder: Any = importlib.import_module(module_name)
        except Exception as error:
            raise ValueError(f"{module_name} cannot be imported: {one_line(error)}") from error
        if not callable(vars(holder).get(name)):
            raise ValueError(f"{module_name} has no function {name!r}")
        try:
            return vars(holder)[name]()
        except Exception as error:
            raise ValueError(f"{self.path}() failed: {one_line(error)}") from error


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A module under examination and its inputs: x_t (B, ...), times r <= t (B,), and a direction v shaped like x_t.

    `seed` is set before every call, so that a module that draws random numbers is still a function of its inputs.
    Raises ValueError naming the field, the rule and the value.
    """

    module: nn.Module
    x_t: Tensor
    r: Tensor
    t: Tensor
    v: Tensor
    conditions: tuple[Any, ...] = ()
    seed: int = 0
    source: Callable[[], Made] | None = None
    """Makes the module again in another process; without it the comparison of processes is left out."""

    def __post_init__(self) -> None:
        batch = len(self.x_t) if self.x_t.ndim else 0
        if not self.x_t.is_floating_point() or self.x_t.ndim < 2 or batch < 1:
            raise ValueError(f"x_t must be floating, (B, ...), got {described(self.x_t)}")
        for name, time in (("r", self.r), ("t", self.t)):
            if not time.is_floating_point() or time.shape != (batch,):
                raise ValueError(f"{name} must be floating of shape ({batch},) like x_t, got {described(time)}")
        if not bool(((self.r >= 0) & (self.r <= self.t) & (self.t <= 1)).all()):
            raise ValueError(f"times must fulfil 0 <= r <= t <= 1, got r {self.r.tolist()}, t {self.t.tolist()}")

    def to(self, dtype: torch.dtype) -> "Patient":
        """A copy with weights and inputs in another precision; the module itself is never handed out twice."""
        moved = map_tensors(lambda a: a.to(dtype) if a.is_floating_point() else a, self.conditions)
        x_t, r, t, v = (a.to(dtype) for a in (self.x_t, self.r, self.t, self.v))
        return replace(self, module=copy.deepcopy(self.module).to(dtype), x_t=x_t, r=r, t=t, v=v, conditions=moved)

    def u(self, x_t: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u(x_t, r, t) under the patient's own conditions and seed."""
        return self.call(self.module, x_t, r, t)

    def call(self, module: nn.Module, x_t: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u(x_t, r, t) of another module, such as a data-parallel wrapper, under the same conditions and seed."""
        torch.manual_seed(self.seed)
        return first_tensor(module(x_t, r, t, *self.conditions))

    def dudt(self) -> Tensor:
        """du/dt by ForwardAD, which raises RuntimeError for a module that draws numbers or has no forward mode."""
        return ForwardAD()(self._unseeded, self.x_t, self.r, self.t, self.v)

    def central_dudt(self) -> Tensor:
        """du/dt by CentralDifference."""
        return CentralDifference()(self._unseeded, self.x_t, self.r, self.t, self.v)

    def _unseeded(self, x_t: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u as training calls it: the derivatives watch the random state, so it must not be set here."""
        return first_tensor(self.module(x_t, r, t, *self.conditions))

    def partial(self, of: str) -> Tensor:
        """The part of du/dt along x_t, r or t alone, by ForwardAD with the other two held; zero where it is lost.

        ForwardAD refuses a function that loses its tangent. Call this only where `dudt` works, so that nothing else can
        be refused.
        """
        still = torch.zeros_like(self.v)
        try:
            if of == "x_t":
                return ForwardAD()(lambda x, r, t: self._unseeded(x, self.r, self.t), self.x_t, self.r, self.t, self.v)
            if of == "r":
                return ForwardAD()(lambda x, r, s: self._unseeded(x, s, self.t), self.x_t, self.r, self.r, still)
            return ForwardAD()(self._unseeded, self.x_t, self.r, self.t, still)
        except RuntimeError:
            return torch.zeros_like(self.x_t)

    def differences(self, x_dot: Tensor, r_dot: Tensor, t_dot: Tensor, h: float) -> tuple[Tensor, float]:
        """(fourth-order difference, relative distance of the second-order ones it is made of, about (w h)^2 / 2)."""
        values = []
        with torch.no_grad():
            for k in (-2, -1, 1, 2):
                values.append(self.u(self.x_t + k * h * x_dot, self.r + k * h * r_dot, self.t + k * h * t_dot))
        near, far = (values[2] - values[1]) / (2 * h), (values[3] - values[0]) / (4 * h)
        return (4 * near - far) / 3, min(1.0, relative(far, near))

    def rows(self, index: slice | Tensor) -> "Patient":
        """Some rows of the batch; conditions that are tensors with B rows are cut too."""
        batch = len(self.x_t)
        cut = map_tensors(lambda a: a[index] if a.ndim and len(a) == batch else a, self.conditions)
        return replace(self, x_t=self.x_t[index], r=self.r[index], t=self.t[index], v=self.v[index], conditions=cut)

    def reference(self) -> "Patient":
        """The float64 copy, or the float32 one of a module that cannot run in float64 (casts written into its code)."""
        wide = self.to(torch.float64)
        try:
            with torch.no_grad():
                fits = wide.u(wide.x_t, wide.r, wide.t).dtype == torch.float64
        except Exception:  # dtype mismatches come as several kinds of error, depending on the operator
            fits = False
        return wide if fits else self.to(torch.float32)


def admit(
    source: Callable[[], Made],
    *,
    batch: int | None = None,
    frames: int | None = None,
    channels: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Patient:
    """Make the module, give it inputs (its own, else normal x_t (4, 16, 8)), and check that it runs on them.

    Raises ValueError in one line for a factory that fails or returns something else, a module that raises, and an
    answer that is not finite or not shaped like x_t.
    """
    with preserved_random_state():
        return _admitted(source, batch, frames, channels, seed, device)


def _admitted(
    source: Callable[[], Made], batch: int | None, frames: int | None, channels: int | None, seed: int, device: str
) -> Patient:
    torch.manual_seed(seed)
    made = source()
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise ValueError(f"a factory returns a module, or (module, (x_t, r, t, ...)); got {type(made).__name__}")
    if inputs is None:
        inputs = example_inputs(batch or 4, frames or 16, channels or 8, seed=seed)
    elif batch or frames or channels:
        raise ValueError("the factory brings its own inputs; leave out --batch, --frames and --channels")
    if not isinstance(inputs, tuple) or len(inputs) < 3 or not all(isinstance(a, Tensor) for a in inputs[:3]):
        raise ValueError(f"example inputs are a tuple (x_t, r, t, ...) of tensors, got {type(inputs).__name__}")
    x_t, r, t, *conditions = map_tensors(lambda a: a.detach().to(device), inputs)
    generator = torch.Generator().manual_seed(seed + 1)
    v = torch.randn(x_t.shape, generator=generator).to(x_t)
    if x_t.ndim < 2 or len(x_t) < 2 or not bool((r < t).any()):
        raise ValueError(f"inputs need at least two rows, and one with r < t; got x_t {described(x_t)}, r {r}, t {t}")
    try:
        whole = copy.deepcopy(module).to(device)
    except Exception as error:  # tensors that are results of operators, handles, whatever a module holds
        raise ValueError(f"the module cannot be copied, and only copies are examined: {one_line(error)}") from error
    patient = Patient(module=whole, x_t=x_t, r=r, t=t, v=v, conditions=tuple(conditions), seed=seed, source=source)
    shapes = ", ".join(str(tuple(a.shape)) for a in (x_t, r, t))
    probe = replace(patient, module=copy.deepcopy(patient.module))
    try:
        with torch.no_grad():
            u = probe.u(x_t, r, t)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"the module failed on inputs of shapes {shapes}: {one_line(error)}") from error
    if u.shape != x_t.shape or not u.is_floating_point():
        raise ValueError(f"u must be floating and shaped like x_t {tuple(x_t.shape)}, got {described(u)}")
    if not bool(torch.isfinite(u).all()):
        raise ValueError("u is not finite on the example inputs")
    return patient


def example_inputs(batch: int, frames: int, channels: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normal x_t (B, N, C), t in [0.5, 0.95), r in [0, 0.4): no row with r = t, no time at the border."""
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(batch, frames, channels, generator=generator)
    t = 0.5 + 0.45 * torch.rand(batch, generator=generator)
    return x_t, 0.4 * torch.rand(batch, generator=generator), t


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restores the states of the global random generators on leaving."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def plain_attention() -> Iterator[None]:
    """Uses forms of attention that have a forward mode, for passes with dual tensors outside ForwardAD."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel([SDPBackend.MATH]):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def interval_times(patient: Patient, dudt: Tensor) -> Tensor:
    """(t - r) du/dt, the term that the target subtracts from v."""
    return expand_right(patient.t - patient.r, dudt) * dudt


@contextmanager
def where_called(module: nn.Module) -> Iterator[list[str]]:
    """A stack of the submodules being executed, innermost last; after an error it still shows where that happened."""
    stack: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            stack.append(name)

        return hook

    def leave(*_: Any) -> None:
        stack.pop()

    handles = []
    for name, part in module.named_modules():
        label = f"{name or '(root)'} ({type(part).__name__})"
        handles += [part.register_forward_pre_hook(enter(label)), part.register_forward_hook(leave)]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`change` applied to every tensor in nested tuples, lists and dicts; other values stay as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple takes its fields one by one
        return type(value)(*(map_tensors(change, a) for a in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(change, a) for a in value)
    if isinstance(value, dict):
        return {key: map_tensors(change, a) for key, a in value.items()}
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for a in value:
            yield from tensors_in(a)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def first_tensor(value: Any) -> Tensor:
    """The tensor itself, or the first one of a tuple (a network with a velocity head returns (u, v))."""
    found = next(tensors_in(value), None)
    if found is None:
        raise ValueError(f"the module must return a tensor, got {type(value).__name__}")
    return found


def relative(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||; 0 where both vanish, infinite where only b does."""
    a, b = a.detach().double(), b.detach().double()
    gap, size = float((a - b).norm()), float(b.norm())
    return 0.0 if gap == 0.0 else float("inf") if size == 0.0 else gap / size


def rms(a: Tensor) -> float:
    """Root mean square over everything."""
    return float(a.detach().double().pow(2).mean().sqrt())


def described(a: Tensor) -> str:
    """Type and shape, for messages."""
    return f"{a.dtype} of shape {tuple(a.shape)}"
