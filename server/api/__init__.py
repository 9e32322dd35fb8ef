"""HTTP: what callers send and get, and nothing about how an answer comes to be."""
