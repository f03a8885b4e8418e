"""The former place of `distill.launch.launcher`, which scripts of users start as `python -m distill.configs.launch`."""

import sys

from distill.launch.launcher import cli

if __name__ == "__main__":
    print("python -m distill.configs.launch is now python -m distill.launch.launcher (mf-launch)", file=sys.stderr)
    cli()
