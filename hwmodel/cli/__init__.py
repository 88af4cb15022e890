"""The command line, one module per command; ``app`` puts them together."""

from hwmodel.cli.app import main

__all__ = ["main"]
