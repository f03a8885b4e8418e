"""A web page for sampling; `command.py` starts it."""

from scripts.app.command import App, cli, serve

__all__ = ["App", "cli", "serve"]
