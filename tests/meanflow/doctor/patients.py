"""Small networks u(x_t, r, t), each with one known disease, and factories that a second process can import."""

import multiprocessing
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import Function

WIDTH = 8


class Healthy(nn.Module):
    """Linear layers with a smooth time embedding; the base of all others."""

    def __init__(self, maxf=1.0):
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.times = nn.Linear(4, WIDTH)
        self.leave = nn.Linear(WIDTH, WIDTH)
        self.maxf = maxf

    def embed(self, r, t):
        times = torch.stack([torch.sin(self.maxf * t), torch.cos(self.maxf * t), torch.sin(t - r), r], dim=1)
        return self.times(times)[:, None]

    def middle(self, h):
        return torch.tanh(h)

    def forward(self, x_t, r, t):
        return self.leave(self.middle(self.enter(x_t) + self.embed(r, t)))


class Attending(Healthy):
    """Fused attention, which has no forward mode."""

    def middle(self, h):
        heads = h.unflatten(-1, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)


class FastPath(Healthy):
    """nn.MultiheadAttention, whose fast path in evaluation mode MATH attention does not touch."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.eval()

    def middle(self, h):
        return self.attend(h, h, h, need_weights=False)[0]


class Detached(Healthy):
    """Forgets that the interval depends on the times."""

    def embed(self, r, t):
        h = (t - r).detach()
        return self.times(torch.stack([torch.sin(t), torch.cos(t), torch.sin(h), h], dim=1))[:, None]


class DetachedR(Healthy):
    """Loses r alone."""

    def embed(self, r, t):
        return super().embed(r.detach(), t)


class Instantaneous(Healthy):
    """Does not use r."""

    def embed(self, r, t):
        return super().embed(torch.zeros_like(r), t)


class Cancelling(nn.Module):
    """(x W + 256) - 256: in bfloat16, whose spacing there is 2, nothing is left of x W."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(WIDTH))

    def forward(self, h):
        return (F.linear(h, self.weight) + 256) - 256


class Sensitive(Healthy):
    def __init__(self):
        super().__init__()
        self.sick = Cancelling()

    def middle(self, h):
        return self.sick(torch.tanh(h))


class WrongJvp(Function):
    """The square, with a forward-mode derivative that is too large by a factor of two."""

    @staticmethod
    def forward(x):
        return x.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(inputs[0])
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad

    @staticmethod
    def jvp(ctx, tangent):
        return 4 * ctx.saved_tensors[0] * tangent


class WrongFactor(Healthy):
    def middle(self, h):
        return WrongJvp.apply(h)


class NoForwardMode(Function):
    """An old-style function: neither setup_context nor jvp."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


class OldFunction(Healthy):
    def middle(self, h):
        return NoForwardMode.apply(torch.tanh(h))


class BatchStatistics(Healthy):
    """Rows see each other, without the buffers of nn.BatchNorm1d: forward mode works."""

    def middle(self, h):
        return (h - h.mean((0, 1))) / h.std((0, 1))


class BatchNormed(Healthy):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)

    def middle(self, h):
        return self.norm(h.transpose(1, 2)).transpose(1, 2)


class Dropping(Healthy):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def middle(self, h):
        return self.drop(torch.tanh(h))


class Unused(Healthy):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Conditioned(Healthy):
    """A condition per row in a dict, and a number beside it."""

    def forward(self, x_t, r, t, extra, scale):
        return super().forward(x_t, r, t) + scale * extra["class"][:, None, None].to(x_t)


def conditioned():
    x_t, r, t = torch.randn(4, 3, WIDTH), torch.zeros(4), torch.full((4,), 0.5)
    return Conditioned(), (x_t, r, t, {"class": torch.arange(4)}, 0.5)


def only_here():
    """Fails in every process but the first."""
    if multiprocessing.parent_process() is not None:
        raise RuntimeError("no such file\nin this process")
    return Healthy()


waves_1, waves_10000 = partial(Healthy, 1.0), partial(Healthy, 1e4)


def nonsense():
    return "a string"


def failing():
    raise KeyError("weights")


class Flat(Healthy):
    def forward(self, x_t, r, t):
        return super().forward(x_t, r, t).mean(1)


class Infinite(Healthy):
    def forward(self, x_t, r, t):
        return super().forward(x_t, r, t) / 0


class Picky(Healthy):
    def forward(self, x_t, r, t):
        raise IndexError("channel 9\nof 8")
