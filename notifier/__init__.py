"""Telling merchants: signing, sending, backoff. The only door to merchants."""
