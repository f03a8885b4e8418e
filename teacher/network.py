"""The MMAudio network (arXiv 2412.15322): conditions encoded once, a velocity per time, optionally a second time.

Parameter names and shapes are those of the published checkpoints. Everything here runs on MMAudio's own clock (0 noise,
1 data); `teacher.velocity` translates.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teacher.blocks import ChannelLastConv1d, FinalLayer, FusedBlock, GatedMLP, JointBlock
from teacher.conditions import Conditions
from teacher.embeddings import Rotary, TimestepEmbedder, rotary
from teacher.sequence import FEATURES_PER_SEGMENT
from teacher.variants import MMAudioConfig


class Encoded(NamedTuple):
    """Conditions after the step-independent part; reusable over sampling steps.

    clip (B, Tc, h), text (B, 77, h), sync (B, N, h) upsampled to the latent rate, pooled (B, h).
    """

    clip: Tensor
    text: Tensor
    sync: Tensor
    pooled: Tensor

    def rows(self, index: Tensor) -> "Encoded":
        """The selected rows."""
        return Encoded(*(part[index] for part in self))

    @staticmethod
    def cat(a: "Encoded", b: "Encoded") -> "Encoded":
        """Two batches of conditions, one after the other."""
        return Encoded(*(torch.cat(pair) for pair in zip(a, b, strict=True)))


class MMAudio(nn.Module):
    """Velocity network over latents (B, N, C), conditioned on image, synchronisation and text features."""

    def __init__(self, config: MMAudioConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels, silu = config.hidden_dim, config.latent_channels, config.version == "v2"
        stage = nn.SiLU if silu else nn.SELU
        self.audio_input_proj = nn.Sequential(
            ChannelLastConv1d(channels, dim, 7), stage(), GatedMLP(dim, config.mlp_dim, 7)
        )
        self.clip_input_proj = nn.Sequential(
            nn.Linear(config.clip_dim, dim), *([nn.SiLU()] if silu else []), GatedMLP(dim, config.mlp_dim, 3)
        )
        self.sync_input_proj = nn.Sequential(
            ChannelLastConv1d(config.sync_dim, dim, 7), stage(), GatedMLP(dim, config.mlp_dim, 3)
        )
        self.text_input_proj = nn.Sequential(
            nn.Linear(config.text_dim, dim), *([nn.SiLU()] if silu else []), GatedMLP(dim, config.mlp_dim)
        )
        self.clip_cond_proj = nn.Linear(dim, dim)
        self.text_cond_proj = nn.Linear(dim, dim)
        self.global_cond_mlp = GatedMLP(dim, config.mlp_dim)
        self.sync_pos_emb = nn.Parameter(torch.zeros(1, 1, FEATURES_PER_SEGMENT, config.sync_dim))
        self.t_embed = TimestepEmbedder(dim, config.version)
        if config.interval_embedding:
            self.interval_embed = TimestepEmbedder(dim, config.version)
        self.joint_blocks = nn.ModuleList(
            JointBlock(config, pre_only=i == config.joint_depth - 1) for i in range(config.joint_depth)
        )
        self.fused_blocks = nn.ModuleList(FusedBlock(config) for _ in range(config.fused_depth))
        self.final_layer = FinalLayer(config)
        self.latent_mean = nn.Parameter(torch.zeros(1, 1, channels), requires_grad=False)
        self.latent_std = nn.Parameter(torch.ones(1, 1, channels), requires_grad=False)
        self.empty_string_feat = nn.Parameter(torch.zeros(config.text_tokens, config.text_dim), requires_grad=False)
        self.empty_clip_feat = nn.Parameter(torch.zeros(1, config.clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.zeros(1, config.sync_dim))
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Xavier linears, zero modulation and output: every residual branch starts closed and the output is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
        for name, parameter in self.named_parameters():
            if name.startswith(("t_embed", "interval_embed")) and name.endswith("weight"):
                nn.init.normal_(parameter, std=0.02)
            if name.startswith("interval_embed.mlp.2"):
                parameter.zero_()
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.conv"):
                parameter.zero_()

    @torch.no_grad()
    def initialise_unit(self, gate: float = 0.1) -> None:
        """Signals of unit size: weights N(0, 1 / fan-in), zero modulation but for slightly open gates, zero output.

        With the published initialisation synchronisation and time enter the modulation at a few hundredths; hundreds
        of thousands of steps make up for that, a few thousand do not.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                closed = "adaLN_modulation" in name or name.startswith("final_layer.conv")
                nn.init.normal_(module.weight, std=0.0 if closed else module.weight[0].numel() ** -0.5)
                if module.bias is not None:
                    module.bias.zero_()
        dim = self.config.hidden_dim
        for name, parameter in self.named_parameters():
            if name.endswith("adaLN_modulation.1.bias") and len(parameter) == 6 * dim:
                parameter.view(6, dim)[[2, 5]] = gate

    def encode_conditions(self, conditions: Conditions, latent_frames: int) -> Encoded:
        """Everything that does not depend on the state or the time. Absent modalities become learned empty tokens."""
        batch = len(conditions)
        clip = torch.where(_per_token(conditions.has_clip), conditions.clip, self.empty_clip_feat)
        sync = torch.where(_per_token(conditions.has_sync), conditions.sync, self.empty_sync_feat)
        text = torch.where(_per_token(conditions.has_text), conditions.text, self.empty_string_feat)
        sync = (sync.reshape(batch, -1, FEATURES_PER_SEGMENT, self.config.sync_dim) + self.sync_pos_emb).flatten(1, 2)
        scale = self.config.condition_scale
        clip, text = self.clip_input_proj(scale * clip), self.text_input_proj(scale * text)
        sync = self.sync_input_proj(sync)
        sync = F.interpolate(sync.transpose(1, 2), size=latent_frames, mode="nearest-exact").transpose(1, 2)
        pooled = self.global_cond_mlp(self.clip_cond_proj(clip.mean(1)) + self.text_cond_proj(text.mean(1)))
        return Encoded(clip, text, sync, pooled)

    def predict(self, x: Tensor, t: Tensor, encoded: Encoded, interval: Tensor | None = None) -> Tensor:
        """Velocity (B, N, C) at state x and time t (B,) of MMAudio's clock; `interval` (B,) = |t - r| if embedded."""
        if (interval is not None) != self.config.interval_embedding:
            raise ValueError("an interval goes with a network built with interval_embedding=True, and only with it")
        time = self.t_embed(t)
        if interval is not None:
            time = time + self.interval_embed(interval)
        pooled = (time + encoded.pooled)[:, None]
        per_token = pooled + encoded.sync
        x = self.audio_input_proj(x)
        latent_table = rotary(x.shape[1], self.config.head_dim, device=x.device, dtype=x.dtype)
        clip_table = self._clip_table(encoded.clip, x)
        clip, text = encoded.clip, encoded.text
        for joint in self.joint_blocks:
            x, clip, text = joint(x, clip, text, per_token, pooled, latent_table, clip_table)
        for fused in self.fused_blocks:
            x = fused(x, per_token, latent_table)
        out: Tensor = self.final_layer(x, pooled)
        return out

    def _clip_table(self, clip: Tensor, x: Tensor) -> Rotary:
        """Image positions in audio-frame units: scale N / Tc."""
        return rotary(
            clip.shape[1], self.config.head_dim, scale=x.shape[1] / clip.shape[1], device=x.device, dtype=x.dtype
        )

    def forward(self, x: Tensor, t: Tensor, conditions: Conditions, interval: Tensor | None = None) -> Tensor:
        """Encode and predict in one call, which is what data-parallel wrappers see."""
        return self.predict(x, t, self.encode_conditions(conditions, x.shape[1]), interval)


def _per_token(mask: Tensor) -> Tensor:
    return mask[:, None, None]
