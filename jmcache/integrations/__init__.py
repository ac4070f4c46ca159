"""Hosts that a cache can live in, each in a module of its own that alone imports the host."""
