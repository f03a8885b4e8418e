"""The one-step generator as modules of tensors alone, in operations that torch.export and ONNX both have.

    x = e - u(e, r = 0, t = 1)  of a student, conditions encoded inside, guidance in one batched forward of two
    wave = vocoder(VAE decoder(x latent_std + latent_mean))          where the codec is MMAudio's

Numbers are those of `teacher.sampling.generator.generate` with one step and of the codec's `decode`, to float32
rounding. What differs is how they are reached: the batch is never counted in Python (`len`, `chunk`), the unconditional
half is encoded once when the module is made, and the vocoder's activation cuts its blocks by reshaping, without chunks
of rows.
"""

import copy
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from meanflow.guidance import Guidance
from meanflow.path import jump
from meanflow.sampling import time_grid
from meanflow.shapes import expand_right
from teacher.audio.alias_free import BLOCK, DOWN_MARGIN, SNAKE_EPS, TAPS, UP_MARGIN, AliasFreeSnake, kaiser_sinc_filter
from teacher.audio.mmaudio_codec import MMAudioCodec
from teacher.network.conditions import Conditions
from teacher.network.mmaudio import Encoded, MMAudio
from teacher.network.velocity import student_velocity

GivenGuidance: TypeAlias = Guidance | Literal["input"]
"""A guidance rule fixed in the graph, or "input": its scale is an input (B,), with the rescaling of `Guidance()`."""


class OneStep(nn.Module):
    """Noise and conditions -> latents in one step. Raises ValueError for a network that is not a student.

    Lengths are fixed: `frames` of the latent and those of features of `duration_s`; the batch is dynamic. Guidance of
    scale 1 takes one row of the network per sound, other scales and "input" two; a network that embeds the scale always
    takes one.
    """

    def __init__(self, net: MMAudio, frames: int, duration_s: float, guidance: GivenGuidance) -> None:
        super().__init__()
        if not net.config.interval_embedding:
            raise ValueError(
                "only a student makes sound in one step; this network is a teacher (no interval embedding)"
            )
        self.net, self.guidance, self.frames = net, guidance, frames
        self.times: tuple[float, ...] = tuple(time_grid(1).tolist())
        self.two_rows = not net.config.guidance_embedding and (guidance == "input" or guidance.active)
        empty = Conditions.empty(1, duration_s, net.config.widths)
        with torch.no_grad():
            nothing = (
                net.encode_conditions(empty, self.frames)
                if self.two_rows
                else Encoded(*(empty.text[:, :0].clone(),) * 4)
            )
        for name, part in nothing._asdict().items():
            self.register_buffer(f"nothing_{name}", part, persistent=False)

    def forward(
        self,
        noise: Float[Tensor, "batch frames channels"],
        clip: Float[Tensor, "batch images 1024"],
        sync: Float[Tensor, "batch syncs 768"],
        text: Float[Tensor, "batch 77 1024"],
        has_clip: Bool[Tensor, " batch"],
        has_sync: Bool[Tensor, " batch"],
        has_text: Bool[Tensor, " batch"],
        omega: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch frames channels"]:
        conditions = Conditions(
            clip=clip, sync=sync, text=text, has_clip=has_clip, has_sync=has_sync, has_text=has_text
        )
        encoded = self.net.encode_conditions(conditions, self.frames)
        t, r = (torch.full_like(noise[:, 0, 0], time) for time in self.times)
        if self.two_rows:
            return jump(noise, self._guided(noise, r, t, encoded, omega), r, t)
        shown: Tensor | float = 1.0
        if self.net.config.guidance_embedding:
            shown = omega if omega is not None else torch.full_like(t, self._rule().omega)
        return jump(noise, student_velocity(self.net, noise, r, t, encoded, shown), r, t)

    def _rule(self) -> Guidance:
        return Guidance() if self.guidance == "input" else self.guidance

    def _guided(self, e: Tensor, r: Tensor, t: Tensor, encoded: Encoded, omega: Tensor | None) -> Tensor:
        """p_c + (omega - 1) (p_c - s* p_u), or the fixed rule applied to p_c and p_u."""
        rows = e.shape[0]
        nothing = (getattr(self, f"nothing_{name}") for name in Encoded._fields)
        both = Encoded.cat(encoded, Encoded(*(part.expand(rows, *part.shape[1:]) for part in nothing)))
        e2, r2, t2 = (torch.cat([x, x]) for x in (e, r, t))
        made = student_velocity(self.net, e2, r2, t2, both)
        c, u = made[:rows], made[rows:]
        rule = self._rule()
        if omega is None:
            return rule(c, u, t).value
        return c + expand_right(omega - 1, c) * (c - expand_right(rule.s_star(c, u), u) * u)


class Decoder(nn.Module):
    """Latents -> wave (B, samples) with the VAE and vocoder of a codec on the CPU, whose weights are not copied."""

    mean: Tensor
    std: Tensor

    def __init__(self, codec: MMAudioCodec) -> None:
        super().__init__()
        self.vae = codec.models.decoder
        self.vocoder = with_exportable_snakes(codec.models.vocoder)
        self.register_buffer("mean", codec.latent_mean, persistent=False)
        self.register_buffer("std", codec.latent_std, persistent=False)

    def forward(self, latent: Float[Tensor, "batch frames channels"]) -> Float[Tensor, "batch samples"]:
        mel = self.vae.decode((latent * self.std + self.mean).transpose(1, 2))
        wave: Tensor = self.vocoder(mel)[:, 0]
        return wave


class ExportedGenerator(nn.Module):
    """The exported graph: `OneStep`, followed by the decoder if there is one."""

    def __init__(self, step: OneStep, decoder: Decoder | None) -> None:
        super().__init__()
        self.step, self.decoder = step, decoder

    def forward(
        self,
        noise: Tensor,
        clip: Tensor,
        sync: Tensor,
        text: Tensor,
        has_clip: Tensor,
        has_sync: Tensor,
        has_text: Tensor,
        omega: Tensor | None = None,
    ) -> Tensor:
        latent: Tensor = self.step(noise, clip, sync, text, has_clip, has_sync, has_text, omega)
        return latent if self.decoder is None else self.decoder(latent)


class ExportableSnake(nn.Module):
    """`anti_aliased_snake` on (B, C, T) at once, with the same banded products; windows are a block and its margins."""

    up: Tensor
    down: Tensor
    frequency: Tensor
    height: Tensor

    def __init__(self, alpha: Float[Tensor, " channels"], beta: Float[Tensor, " channels"]) -> None:
        super().__init__()
        taps = kaiser_sinc_filter().double()
        row, m = torch.arange(BLOCK + 2 * UP_MARGIN)[:, None], torch.arange(2 * BLOCK)
        up = 2 * _taps_at(taps, m + 5 - 2 * (row - UP_MARGIN))
        row, n = torch.arange(2 * BLOCK + 2 * DOWN_MARGIN)[:, None], torch.arange(BLOCK)
        down = _taps_at(taps, row - DOWN_MARGIN - 2 * n + 5)
        parts = {"up": up, "down": down, "frequency": alpha.exp()[:, None]}
        parts["height"] = beta.exp().add(SNAKE_EPS).reciprocal()[:, None]
        for name, part in parts.items():
            self.register_buffer(name, part.detach().to(alpha), persistent=False)

    def forward(self, x: Float[Tensor, "batch channels time"]) -> Float[Tensor, "batch channels time"]:
        length = x.shape[2]
        u = _blockwise(x, self.up, UP_MARGIN, BLOCK)
        u = u if u.shape[2] == 2 * length else u.narrow(2, 0, 2 * length)
        sine = torch.sin(u * self.frequency)
        y = _blockwise(u + sine * sine * self.height, self.down, DOWN_MARGIN, 2 * BLOCK)
        return y if y.shape[2] == length else y.narrow(2, 0, length)


def with_exportable_snakes(vocoder: nn.Module) -> nn.Module:
    """A network with `ExportableSnake` for its activations; the weights of the original are used without a copy."""
    twin = copy.deepcopy(vocoder, {id(p): p for p in vocoder.parameters()})
    for name, module in list(twin.named_modules()):
        if isinstance(module, AliasFreeSnake):
            parent, _, last = name.rpartition(".")
            setattr(twin.get_submodule(parent), last, ExportableSnake(module.act.alpha, module.act.beta))
    return twin


def _taps_at(taps: Tensor, k: Tensor) -> Tensor:
    """h[k], zero outside the filter."""
    return torch.where((k >= 0) & (k < TAPS), taps[k.clamp(0, TAPS - 1)], 0.0)


def _blockwise(x: Float[Tensor, "batch channels time"], matrix: Tensor, margin: int, step: int) -> Tensor:
    """Windows from `margin` before a block to `margin` after it, times `matrix`; edge samples are repeated.

    The sound is cut into blocks of `step` that begin `margin` early; a window is one of them and 2 margin of the next.
    """
    count = -(-x.shape[2] // step)
    held = nn.functional.pad(x, (margin, (count + 1) * step - margin - x.shape[2]), mode="replicate")
    blocks = held.unflatten(2, (count + 1, step))
    windows = torch.cat([blocks.narrow(2, 0, count), blocks.narrow(2, 1, count).narrow(3, 0, 2 * margin)], dim=3)
    return (windows @ matrix).flatten(2)
