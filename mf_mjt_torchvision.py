"""Torchvision beside a torch that its compiled half was not built for: imports of it succeed in this environment.

The wheel of torchvision on the package index is built against the CUDA build of torch. Beside the CPU build its library
of operators does not load, and `import torchvision` stops at the first Python rule for an operator that then does not
exist. open_clip, timm, torch-fidelity and transformers import torchvision but use only its transforms, which are plain
Python; the console command `accelerate` imports timm, before any code of a training program runs.

Installing this project therefore registers `guard_torchvision` as an entry point of the group "torch.backends", whose
functions torch calls at the end of its own import: in every program of the environment, for a wheel and for an editable
installation alike, and in no program that does not import torch. The environment variable
TORCH_DEVICE_BACKEND_AUTOLOAD=0 switches this off, as it does for every entry point of the group. The module stands
beside the packages, and under a name of its own, so that a folder called `teacher` in the current directory cannot take
its place; it imports nothing but the standard library.
"""

import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""Operators that torchvision attaches a rule to while it is imported."""

_declared: list[Any] = []
"""A declaration lives as long as its library object."""


def guard_torchvision() -> None:
    """From now on `import torchvision` declares operators that it misses; nothing is imported here.

    The plain import is tried first, and where it succeeds nothing else happens: declaring an operator that a working
    torchvision declares as well would abort the process. Only the operators that the import missed are declared,
    without an implementation, and it is repeated; calling one still raises torchvision's own error. Any other error is
    passed on.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds torchvision where it would be found anyway, for `_Loader` to execute."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Executes torchvision again after declaring an operator that it missed.

    Raises ImportError, saying what to install, for an operator that is not one of `SCHEMAS` or is there already.
    """

    def exec_module(self, module: ModuleType) -> None:
        while True:
            try:
                super().exec_module(module)
                return
            except RuntimeError as error:
                missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
                if missing is None:
                    raise
                _declare(missing[1], error)


def _declare(name: str, error: RuntimeError) -> None:
    import torch

    known = SCHEMAS.get(name)
    if known is None or hasattr(torch.ops.torchvision, name):
        raise ImportError(
            f"torchvision does not fit the installed torch {torch.__version__} (operator {name}); install the "
            "torchvision that was released with it"
        ) from error
    for part in [part for part in sys.modules if part.startswith("torchvision.")]:
        del sys.modules[part]  # a half-finished import would be taken for a finished one
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(known)
    _declared.append(library)
