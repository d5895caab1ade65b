"""Tests with a real PostgreSQL or a real node."""
