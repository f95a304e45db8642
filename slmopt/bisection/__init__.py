"""Bisection of recipes: which pass breaks a property, which of its rewrites, and a directory that shows it."""

from slmopt.bisection.finding import Finding, Reproducer
from slmopt.bisection.replay import Replayed, replay
from slmopt.bisection.search import bisect

__all__ = ["Finding", "Replayed", "Reproducer", "bisect", "replay"]
