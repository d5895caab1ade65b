"""What we know: the schema, every SQL statement as a named function, ids, states, and the rules of what may be stored."""
