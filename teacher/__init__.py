"""Sound for video and words with the networks of a run folder.

    from teacher import Pipeline

    pipe = Pipeline.from_pretrained("runs/demo/student")
    sounds = pipe(video="holiday.mov", prompt="waves on a beach", seeds=(0, 1), guidance=1.4)
    sounds[0].save("holiday.flac")

What stands here is imported when it is first asked for, so that a part such as `teacher.files` loads no networks.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teacher.sampling.generator import SamplingConfig
    from teacher.sampling.model_card import ModelCard
    from teacher.sampling.pipeline import Pipeline
    from teacher.sampling.scene import Scene, Sound
    from teacher.weights.loading import load_network

__all__ = ["ModelCard", "Pipeline", "SamplingConfig", "Scene", "Sound", "load_network"]

_MODULES = {
    "ModelCard": "teacher.sampling.model_card",
    "Pipeline": "teacher.sampling.pipeline",
    "SamplingConfig": "teacher.sampling.generator",
    "Scene": "teacher.sampling.scene",
    "Sound": "teacher.sampling.scene",
    "load_network": "teacher.weights.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'teacher' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
