"""Frontends: what turns a model into a Module. Each is imported by its own name; this package imports nothing."""
