"""Tests of the runtime: the C files, the binding, and what both share (stand_in.py)."""
