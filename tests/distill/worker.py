"""One process of `tests.distill.processes`: calls `module:function` with keyword arguments given as JSON.

What the function returns is written as JSON to the file named last. Run as
`python -m tests.distill.worker module:function '{"name": 1}' answer.json`.
"""

import importlib
import json
import sys
from pathlib import Path


def main(target: str, arguments: str, answer: str) -> None:
    """Call the target; afterwards leave the process group, if it started one, without waiting for the others."""
    module, function = target.split(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(result))
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
