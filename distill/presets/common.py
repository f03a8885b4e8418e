"""What recipes share: where things lie unless flags say otherwise, and the loop of seconds on a CPU."""

from pathlib import Path

from distill.config import EvaluationConfig, LoopConfig, OptimConfig

DATA = (Path("runs/demo/features"),)
TEACHER = Path("runs/demo/teacher")
OWN_DATA = (Path("runs/own/features"),)
FULL_DATA = (Path("features/vgg"),)
PRETRAINED = Path("runs/mmaudio-small-16k")
PRETRAINED_V2 = Path("runs/mmaudio-large-44k-v2")
UNGUIDED = Path("runs/mf-mjt-unguided")
HEALED = Path("runs/mf-mjt-large-44k-v2-heal")
UNGUIDED_SHARE = 1 / 3
"""Of a warm-started training, the part before guidance: 20 of 60 epochs of MeanFlow from SiT-XL (zhuyu-cs/MeanFlow)."""
PUBLISHED = ("small_16k", "small_44k", "medium_44k", "large_44k", "large_44k_v2")


def debug_loop() -> LoopConfig:
    """Twenty steps, everything on the schedule at least once."""
    return LoopConfig(
        steps=20,
        batch_size=8,
        optim=OptimConfig(lr=1e-3, warmup_steps=5),
        ema_std=(0.1,),
        log_every=5,
        save_every=10,
        evaluation=EvaluationConfig(every=20, num_clips=4, teacher_steps=5),
    )
