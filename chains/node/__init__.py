"""Transport: one node's JSON-RPC client, the health of one upstream, and the pool over several."""
