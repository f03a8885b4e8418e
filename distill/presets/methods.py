"""Every objective as a full-scale recipe: published times, loss and guidance of each method, all in the same loop.

Data, batch, optimiser and length are those of `student_mf_mjt`, so that what differs is the method.
"""

from dataclasses import dataclass

from distill.config import DistillRun, FromData, FromTeacher, GuidedInput, Method
from distill.presets import student_mf_mjt
from meanflow import (
    AdaptiveL2,
    AlphaFlow,
    ConsistencyTraining,
    Guidance,
    ImprovedMeanFlow,
    LogitNormal,
    MeanFlow,
    MixedGuidance,
    PlainFlowMatching,
    SplitMeanFlow,
    TerminalVelocity,
    TransitionModel,
)
from meanflow.time_sampling import PUBLISHED, MixedTimes, Ordered


@dataclass(frozen=True, kw_only=True)
class Published:
    """One objective with what goes with it."""

    says: str
    method: Method

    def run(self) -> DistillRun:
        """The full-scale run."""
        loop = student_mf_mjt()
        return DistillRun(data=loop.data, teacher=loop.teacher, method=self.method, loop=loop.loop)


IMAGENET = AdaptiveL2(p=1.0, c=1e-2, reduction="sum")
"""MeanFlow and improved MeanFlow on ImageNet."""
AUDIO = AdaptiveL2(p=1.0, c=1e-3)
"""MeanAudio and alpha-Flow."""
SQUARED = AdaptiveL2(p=0.0)
"""The plain squared error."""
SCALE_3 = FromData(mixed=MixedGuidance(omega=0.3, kappa=0.9), predictions="student")
"""MeanAudio's guided target, of scale 0.3 / (1 - 0.9) = 3; used where a method publishes none."""
GUIDED_TEACHER = FromTeacher(guidance=Guidance(omega=3.0, rescale=False))
"""The same scale from the teacher, for objectives that do not learn u(x_t, t, t) or stand on it."""

METHODS: dict[str, Published] = {
    "meanflow": Published(
        says="MeanFlow (2505.13447): exact derivative on a quarter of the rows, the target guided as in XL/2.",
        method=Method(
            objective=MeanFlow(),
            times=PUBLISHED["meanflow_imagenet"],
            loss=IMAGENET,
            velocity=FromData(mixed=MixedGuidance(omega=0.2, kappa=0.92, interval=(0.0, 0.75)), predictions="student"),
        ),
    ),
    "improved": Published(
        says="Improved MeanFlow (2512.02012), boundary form: tangent u(x_t, t, t), the guidance scale as an input.",
        method=Method(
            objective=ImprovedMeanFlow(),
            times=PUBLISHED["improved_meanflow"],
            loss=IMAGENET,
            velocity=GuidedInput(),
        ),
    ),
    "improved-head": Published(
        says="Improved MeanFlow with a velocity head of 8 blocks, as published; the teacher needs as many fused ones.",
        method=Method(
            objective=ImprovedMeanFlow(head=True),
            times=PUBLISHED["improved_meanflow"],
            loss=IMAGENET,
            velocity=GuidedInput(),
            velocity_head=8,
        ),
    ),
    "alpha-flow": Published(
        says="AlphaFlow (2510.20771): from flow matching to MeanFlow over training.",
        method=Method(objective=AlphaFlow(), times=PUBLISHED["improved_meanflow"], loss=AUDIO, velocity=SCALE_3),
    ),
    "split": Published(
        says="SplitMeanFlow (2507.16884): no derivative; the boundary is the guided teacher. Times and loss are ours.",
        method=Method(
            objective=SplitMeanFlow(), times=PUBLISHED["improved_meanflow"], loss=AUDIO, velocity=GUIDED_TEACHER
        ),
    ),
    "transition": Published(
        says="Transition model (2509.04394): central differences; for the float32 launch files alone.",
        method=Method(
            objective=TransitionModel(),
            times=PUBLISHED["transition"],
            loss=AdaptiveL2(p=1.0, c=1e-5),
            velocity=FromData(mixed=MixedGuidance(omega=1.0, kappa=0.75, interval=(0.3, 0.8)), predictions="student"),
        ),
    ),
    "terminal": Published(
        says="Terminal velocity matching (2511.19797): four rows through the network for each; float32 launch files.",
        method=Method(
            objective=TerminalVelocity(), times=PUBLISHED["terminal_velocity"], loss=SQUARED, velocity=SCALE_3
        ),
    ),
    "consistency": Published(
        says="Consistency distillation (2303.01469) of the guided teacher, for one step. Times and loss are ours.",
        method=Method(
            objective=ConsistencyTraining(),
            times=MixedTimes(fm_fraction=1.0, fm_density=LogitNormal(mean=-0.4)),
            loss=AUDIO,
            velocity=GUIDED_TEACHER,
        ),
    ),
    "flow-matching": Published(
        says="Plain flow matching (2210.02747) of the guided velocity: the baseline of many steps.",
        method=Method(
            objective=PlainFlowMatching(),
            times=MixedTimes(pairs=Ordered(), fm_fraction=1.0, fm_density=LogitNormal(mean=0.0)),
            loss=SQUARED,
            velocity=SCALE_3,
        ),
    ),
}
"""By the name that the command line gives them."""
