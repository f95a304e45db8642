"""Tests of slmopt.ir."""
