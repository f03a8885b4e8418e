"""The MMAudio network (arXiv 2412.15322): conditions encoded once, a velocity per time, optionally a second time.

Parameter names and shapes are those of the published checkpoints. Everything here runs on MMAudio's own clock (0 noise,
1 data); `teacher.network.velocity` translates.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meanflow.shapes import Prediction
from teacher.network.blocks import ChannelLastConv1d, FinalLayer, FusedBlock, GatedMLP, JointBlock
from teacher.network.conditions import Conditions
from teacher.network.embeddings import Rotary, TimestepEmbedder, rotary
from teacher.network.sequence import FEATURES_PER_SEGMENT
from teacher.network.variants import MMAudioConfig

FROZEN_PARAMETERS = ("latent_mean", "latent_std", "empty_string_feat")
"""Parameters that hold statistics and stored features, never trained."""

OUTPUTS = ("final_layer.conv", "velocity_layer.conv")
"""Names of the layers that compute the outputs."""


class Encoded(NamedTuple):
    """Conditions after the step-independent part; reusable over sampling steps.

    clip (B, Tc, h), the visual stream; text (B, 77, h); sync (B, N, h) upsampled to the latent rate, or (B, 1, h) zeros
    where synchronisation does not enter the modulation; pooled (B, h).
    """

    clip: Tensor
    text: Tensor
    sync: Tensor
    pooled: Tensor

    def rows(self, index: Tensor) -> "Encoded":
        """Encoded conditions of the rows that `index` selects."""
        return Encoded(*(part[index] for part in self))

    @staticmethod
    def cat(a: "Encoded", b: "Encoded") -> "Encoded":
        """Two batches of conditions, one after the other."""
        return Encoded(*(torch.cat(pair) for pair in zip(a, b, strict=True)))


class MMAudio(nn.Module):
    """Velocity network over latents (B, N, C), conditioned on image, synchronisation and text features.

    A network cast to bfloat16 takes inputs of any float dtype and returns the dtype of the state; its tables of times
    and positions stay float32.
    """

    checkpoint_blocks = False
    """Store only the inputs of joint and fused blocks for the backward pass, which recomputes the rest."""

    def __init__(self, config: MMAudioConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels, silu = config.hidden_dim, config.latent_channels, config.version == "v2"
        stage = nn.SiLU if silu else nn.SELU
        wide, narrow = (7, 3) if config.mlp == "conv" else (None, None)
        self.audio_input_proj = nn.Sequential(
            ChannelLastConv1d(channels, dim, 7), stage(), GatedMLP(dim, config.mlp_dim, wide)
        )
        self.clip_input_proj = nn.Sequential(
            nn.Linear(config.clip_dim, dim), *([nn.SiLU()] if silu else []), GatedMLP(dim, config.mlp_dim, narrow)
        )
        if config.sync != "none":
            self.sync_input_proj = nn.Sequential(
                ChannelLastConv1d(config.sync_dim, dim, 7), stage(), GatedMLP(dim, config.mlp_dim, narrow)
            )
        self.text_input_proj = nn.Sequential(
            nn.Linear(config.text_dim, dim), *([nn.SiLU()] if silu else []), GatedMLP(dim, config.mlp_dim)
        )
        self.clip_cond_proj = nn.Linear(dim, dim)
        self.text_cond_proj = nn.Linear(dim, dim)
        self.global_cond_mlp = GatedMLP(dim, config.mlp_dim)
        if config.sync != "none":
            self.sync_pos_emb = nn.Parameter(torch.zeros(1, 1, FEATURES_PER_SEGMENT, config.sync_dim))
        time = (config.version, config.time_precision, config.time_frequencies)
        self.t_embed = TimestepEmbedder(dim, *time)
        if config.interval_embedding:
            self.interval_embed = TimestepEmbedder(dim, *time)
        if config.guidance_embedding:  # v1 in every network: v2's 1e4 rad per unit would scramble neighbouring scales
            self.guidance_embed = TimestepEmbedder(dim, "v1")
        self.joint_blocks = nn.ModuleList(
            JointBlock(config, pre_only=i == config.joint_depth - 1) for i in range(config.joint_depth)
        )
        self.fused_blocks = nn.ModuleList(FusedBlock(config) for _ in range(config.fused_depth))
        self.final_layer = FinalLayer(config)
        if config.velocity_head:
            self.velocity_blocks = nn.ModuleList(FusedBlock(config) for _ in range(config.velocity_head))
            self.velocity_layer = FinalLayer(config)
        self.latent_mean = nn.Parameter(torch.zeros(1, 1, channels), requires_grad=False)
        self.latent_std = nn.Parameter(torch.ones(1, 1, channels), requires_grad=False)
        self.empty_string_feat = nn.Parameter(torch.zeros(config.text_tokens, config.text_dim), requires_grad=False)
        if config.missing != "zeros":
            self.empty_clip_feat = nn.Parameter(torch.zeros(1, config.clip_dim))
            if config.sync != "none":
                self.empty_sync_feat = nn.Parameter(torch.zeros(1, config.sync_dim))
        if config.missing == "learned":
            self.empty_text_feat = nn.Parameter(torch.zeros(1, config.text_dim))
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Initialise linear layers by Xavier, modulation and output by 0, so residual branches and output are 0."""
        if self.latent_mean.is_meta:  # a shape to load weights into
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
        for name, parameter in self.named_parameters():
            if name.startswith(("t_embed", "interval_embed", "guidance_embed")) and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
            if name.startswith(("interval_embed.mlp.2", "guidance_embed.mlp.2")):
                parameter.zero_()
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith(OUTPUTS):
                parameter.zero_()

    @torch.no_grad()
    def initialise_unit(self, gate: float = 0.1) -> None:
        """Initialise for signals of unit size: weights N(0, 1 / fan-in), gates `gate`, other modulation and output 0.

        With the published initialisation, synchronisation and time have a size of a few hundredths in the modulation.
        Hundreds of thousands of training steps correct that, but not a few thousand.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                closed = "adaLN_modulation" in name or name.startswith(OUTPUTS)
                nn.init.normal_(module.weight, std=0.0 if closed else module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    module.bias.zero_()
        dim = self.config.hidden_dim
        for name, parameter in self.named_parameters():
            if name.endswith("adaLN_modulation.1.bias") and len(parameter) == 6 * dim:
                parameter.view(6, dim)[[2, 5]] = gate

    def encode_conditions(self, conditions: Conditions, latent_frames: int) -> Encoded:
        """Everything that does not depend on the state or the time, with absent modalities filled in.

        Raises ValueError if the features do not have the network's widths or lengths.
        """
        self._check(conditions)
        how, scale, zeros = self.config, self.config.condition_scale, self.config.missing == "zeros"
        no_text = self.empty_text_feat if how.missing == "learned" else self.empty_string_feat
        clip = self._filled(conditions.clip, conditions.has_clip, None if zeros else self.empty_clip_feat)
        text = self._filled(conditions.text, conditions.has_text, None if zeros else no_text)
        if how.sync == "sum":
            sync = self._projected_sync(conditions)
            clip = self.clip_input_proj(scale * _nearest(clip, sync.shape[1])) + sync
        else:
            clip = self.clip_input_proj(scale * clip)
        text = self.text_input_proj(scale * text)
        if how.sync == "adaln":
            per_token = _nearest(self._projected_sync(conditions), latent_frames)
        else:
            per_token = torch.zeros_like(text[:, :1])
        pooled = self.global_cond_mlp(self.clip_cond_proj(clip.mean(1)) + self.text_cond_proj(text.mean(1)))
        return Encoded(clip, text, per_token, pooled)

    def _projected_sync(self, conditions: Conditions) -> Tensor:
        """Synchronisation features with the position inside their segment, projected: (B, Ts, h)."""
        empty = None if self.config.missing == "zeros" else self.empty_sync_feat
        sync = self._filled(conditions.sync, conditions.has_sync, empty)
        sync = sync.unflatten(1, (-1, FEATURES_PER_SEGMENT)) + self.sync_pos_emb
        projected: Tensor = self.sync_input_proj(sync.flatten(1, 2))
        return projected

    def _filled(self, features: Tensor, present: Tensor, empty: Tensor | None) -> Tensor:
        """The features where present, elsewhere the empty token (zero if None), in a precision the weights take."""
        return torch.where(present[:, None, None], self._taken(features), 0.0 if empty is None else empty)

    def _taken(self, x: Tensor) -> Tensor:
        """`x` in the dtype of half-precision weights; as it is for wider ones, whose mismatch stays an error."""
        dtype = self.final_layer.conv.weight.dtype
        return x.to(dtype) if dtype.itemsize == 2 else x

    def _check(self, conditions: Conditions) -> None:
        how, clip, sync, text = self.config, conditions.clip, conditions.sync, conditions.text
        if clip.shape[2] != how.clip_dim or clip.shape[1] < 1:
            raise ValueError(f"image features must be (B, 1 or more, {how.clip_dim}), got {tuple(clip.shape)}")
        if text.shape[1:] != (how.text_tokens, how.text_dim):
            raise ValueError(f"text features must be (B, {how.text_tokens}, {how.text_dim}), got {tuple(text.shape)}")
        fits = sync.shape[2] == how.sync_dim and sync.shape[1] and sync.shape[1] % FEATURES_PER_SEGMENT == 0
        if how.sync != "none" and not fits:
            raise ValueError(
                f"synchronisation features must be (B, {FEATURES_PER_SEGMENT} per segment, {how.sync_dim}), "
                f"got {tuple(sync.shape)}"
            )

    def predict(
        self, x: Tensor, t: Tensor, encoded: Encoded, interval: Tensor | None = None, omega: Tensor | None = None
    ) -> Tensor:
        """Velocity (B, N, C) at state x and time t (B,) in MMAudio's time; a velocity head is not run.

        `interval` (B,) = |t - r| and `omega` (B,), the guidance scale, are required if, and only if, the network embeds
        them; otherwise ValueError is raised.
        """
        stream = self._shared(x, t, encoded, interval, omega)
        return self._branch(stream, list(self.fused_blocks)[self._parting :], self.final_layer).to(x.dtype)

    def predict_headed(
        self, x: Tensor, t: Tensor, encoded: Encoded, interval: Tensor | None = None, omega: Tensor | None = None
    ) -> Prediction:
        """As `predict`, together with the velocity head's estimate of v; ValueError for a network without a head."""
        if not self.config.velocity_head:
            raise ValueError("this network was built without a velocity head (velocity_head=0)")
        stream = self._shared(x, t, encoded, interval, omega)
        u = self._branch(stream, list(self.fused_blocks)[self._parting :], self.final_layer)
        v = self._branch(stream, list(self.velocity_blocks), self.velocity_layer)
        return Prediction(u.to(x.dtype), v.to(x.dtype))

    @property
    def _parting(self) -> int:
        """Index of the fused block before which the velocity head's branch separates."""
        return self.config.fused_depth - self.config.velocity_head

    def _shared(
        self, x: Tensor, t: Tensor, encoded: Encoded, interval: Tensor | None, omega: Tensor | None
    ) -> "_Stream":
        """Modulation, joint blocks, and the fused blocks before the branches part."""
        if (interval is not None) != self.config.interval_embedding:
            raise ValueError("an interval goes with a network built with interval_embedding=True, and only with it")
        if (omega is not None) != self.config.guidance_embedding:
            raise ValueError("omega goes with a network built with guidance_embedding=True, and only with it")
        time = self.t_embed(t)
        if interval is not None:
            time = time + self.interval_embed(interval)
        if omega is not None:
            time = time + self.guidance_embed(1 - 1 / omega)
        pooled = (time + encoded.pooled)[:, None]
        per_token = pooled + encoded.sync
        latent_table, clip_table = self.rotary_tables(x.shape[1], encoded.clip.shape[1], like=x)
        x = self.audio_input_proj(self._taken(x))
        clip, text = encoded.clip, encoded.text
        for joint in self.joint_blocks:
            x, clip, text = self._through(joint, x, clip, text, per_token, pooled, latent_table, clip_table)
        for fused in list(self.fused_blocks)[: self._parting]:
            x = self._through(fused, x, per_token, latent_table)
        return _Stream(x, per_token, pooled, latent_table)

    def _branch(self, stream: "_Stream", blocks: list[nn.Module], layer: FinalLayer) -> Tensor:
        x = stream.x
        for fused in blocks:
            x = self._through(fused, x, stream.per_token, stream.table)
        out: Tensor = layer(x, stream.pooled)
        return out

    def _through(self, block: nn.Module, *inputs: Tensor | Rotary | None) -> Any:
        """The output of a block, recomputed in the backward pass if there is a graph; blocks draw no random numbers."""
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)

    def rotary_tables(
        self, latent_frames: int, visual_frames: int, *, like: Tensor
    ) -> tuple[Rotary | None, Rotary | None]:
        """Positions of the sound and the visual stream; aligned, the latter counts in latent frames: scale N / Tc."""
        if self.config.rope == "none":
            return None, None
        scale = latent_frames / visual_frames if self.config.rope == "aligned" else 1.0
        dim, device, dtype = self.config.head_dim, like.device, like.dtype
        return (
            rotary(latent_frames, dim, device=device, dtype=dtype),
            rotary(visual_frames, dim, scale=scale, device=device, dtype=dtype),
        )

    def forward(
        self, x: Tensor, t: Tensor, conditions: Conditions, interval: Tensor | None = None, omega: Tensor | None = None
    ) -> Tensor | Prediction:
        """Encode and predict in one call, which is what data-parallel wrappers see; with the velocity head if any."""
        predict = self.predict_headed if self.config.velocity_head else self.predict
        return predict(x, t, self.encode_conditions(conditions, x.shape[1]), interval, omega)


class _Stream(NamedTuple):
    """The sound stream (B, N, h) with what its blocks are given."""

    x: Tensor
    per_token: Tensor
    pooled: Tensor
    table: Rotary | None


def _nearest(x: Tensor, frames: int) -> Tensor:
    """(B, T, C) resampled along time to `frames`: output i is input floor((i + 1/2) T / frames)."""
    return F.interpolate(x.transpose(1, 2), size=frames, mode="nearest-exact").transpose(1, 2)
