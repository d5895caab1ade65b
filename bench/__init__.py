"""Measurements, and the generator of blocks that they and the tests are fed with."""
