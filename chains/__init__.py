"""What a chain says: values, profiles of chains, node clients, proof checks, decoding. The only door to nodes."""
