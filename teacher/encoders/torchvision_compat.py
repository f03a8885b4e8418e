"""Importing torchvision beside a torch that its compiled half was not built for.

The wheel on the package index is built against the CUDA torch. Beside a CPU torch its library of operators does not
load, and the import stops at the first Python rule for an operator that then does not exist. open_clip, timm and
torch-fidelity import torchvision but need only its transforms, which are plain Python.
"""

import importlib
import re
import sys

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""Operators that torchvision attaches a rule to while it is imported."""

_declared: list[torch.library.Library] = []
"""A declaration lives as long as its library object."""


def ensure_torchvision() -> None:
    """Make `import torchvision` succeed; call it before importing open_clip, timm or torch-fidelity.

    The plain import is tried first and where it succeeds nothing else happens: declaring an operator that a working
    torchvision declares as well would abort the process. Only the operators that the import missed are declared,
    without an implementation, and it is repeated; calling one still raises. Any other error is passed on.
    """
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _declare(missing[1], error)


def _declare(name: str, error: RuntimeError) -> None:
    known = SCHEMAS.get(name)
    if known is None or hasattr(torch.ops.torchvision, name):
        raise ImportError(
            f"torchvision does not fit the installed torch {torch.__version__} (operator {name}); install the "
            "torchvision that was released with it"
        ) from error
    for module in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[module]  # a half-finished import would be taken for a finished one
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(known)
    _declared.append(library)
