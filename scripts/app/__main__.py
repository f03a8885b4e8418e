"""`python -m scripts.app` is `mf-app`."""

from scripts.app import cli

cli()
