"""Starting a training: accelerate's configuration files, a launcher that passes on signals and statuses, a check."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "configs"
"""Where the configuration files lie; documented commands name `distill/configs/FILE.yaml`, so it stays there."""
