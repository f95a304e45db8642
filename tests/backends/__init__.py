"""Tests of the backends and their kernels."""
