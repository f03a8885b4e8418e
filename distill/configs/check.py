"""The former place of `distill.launch.check`, which scripts of users start as `python -m distill.configs.check`."""

import sys

from distill.launch.check import cli

if __name__ == "__main__":
    print("python -m distill.configs.check is now python -m distill.launch.check", file=sys.stderr)
    cli()
