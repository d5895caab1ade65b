"""Chainbell driven as its users drive it: commands, REST, a real chain, a real Postgres, a merchant's own library."""
