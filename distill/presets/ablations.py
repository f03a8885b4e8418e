"""The paper's comparisons as recipes (arXiv 2412.15322, tables 4, 6, 7 and A3): small_16k with one thing changed."""

from dataclasses import dataclass, field, replace

from distill.config import Fresh, TeacherRun
from distill.presets import teacher_published
from teacher.features.dataset import Modalities
from teacher.network.variants import MMAudioConfig, variant

BASE = "small_16k"


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What differs from the published recipe."""

    says: str
    network: MMAudioConfig = field(default_factory=lambda: variant(BASE))
    modalities: Modalities = "AVT+AT"

    def applied(self, run: TeacherRun) -> TeacherRun:
        """The recipe with the change."""
        return replace(run, start=Fresh(network=self.network), modalities=self.modalities)


_small = variant(BASE)

ABLATIONS: dict[str, Ablation] = {
    "av-at": Ablation(says="no text beside pictures (table 4)", modalities="AV+AT"),
    "avt-a": Ablation(says="no text beside sounds without pictures (table 4)", modalities="AVT+A"),
    "avt": Ablation(says="only sets with pictures (table 4)", modalities="AVT"),
    "av": Ablation(says="only sets with pictures, without text (table 4)", modalities="AV"),
    "sum-sync": Ablation(says="sync features added to image features (table 6)", network=replace(_small, sync="sum")),
    "no-sync": Ablation(says="no sync features (table 6)", network=replace(_small, sync="none")),
    "rope-none": Ablation(says="no positions (table 6)", network=replace(_small, rope="none")),
    "rope-default": Ablation(says="positions not aligned in time (table 6)", network=replace(_small, rope="default")),
    "mlp": Ablation(says="MLP in place of ConvMLP, wider and deeper (table 7)", network=variant("mlp_16k")),
    "n2-13": Ablation(says="2 joint and 13 fused blocks (table 7)", network=variant("n2_13_16k")),
    "n6-3": Ablation(says="6 joint and 3 fused blocks (table 7)", network=variant("n6_3_16k")),
    "missing-learned": Ablation(
        says="learned tokens for every absent modality (table A3)", network=replace(_small, missing="learned")
    ),
    "missing-zeros": Ablation(
        says="zeros for every absent modality (table A3)", network=replace(_small, missing="zeros")
    ),
}
"""By name; the command line calls them ablate-<name>."""


def ablation(name: str) -> TeacherRun:
    """The published recipe of small_16k with the change called `name`."""
    return ABLATIONS[name].applied(teacher_published(BASE))
