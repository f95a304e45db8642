"""Healing: a rewritten model is trained until it says again what the original says."""
