"""Tests without a database or a node."""
