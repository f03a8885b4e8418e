"""`mf-report` turns rows into a page without the networks: what it imports."""

import subprocess
import sys

HEAVY = (
    "torch",
    "av",
    "transformers",
    "matplotlib",
    "scipy.linalg",
    "scipy.stats",
    "soundfile",
    "PIL",
    "safetensors.torch",
)
OWN = ("meanflow", "teacher", "distill", "eval", "scripts")


def test_the_command_imports_no_network_and_about_thirty_modules_of_ours():
    code = "import sys, scripts.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules = done.stdout.split()
    assert not set(HEAVY) & set(modules)
    own = [name for name in modules if name.split(".")[0] in OWN]
    assert len(own) <= 55, own
