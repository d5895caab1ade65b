"""The version of this installation."""

from importlib.metadata import version

VERSION = version("chainbell")
"""As in `pyproject.toml`; told in the webhooks' user agent."""
