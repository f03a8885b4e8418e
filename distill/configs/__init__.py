"""What to launch with: accelerate configurations, a Slurm script, and a launcher that keeps signals and statuses."""

from pathlib import Path

FOLDER = Path(__file__).parent
"""Where the configuration files lie."""
