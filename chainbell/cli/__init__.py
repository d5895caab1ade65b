"""The `chainbell` command."""
