"""A story in a terminal: a local chain, an embedded database, a sample merchant."""
