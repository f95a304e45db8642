"""Tests keep what is cached to themselves: in a directory that goes when they end."""

from __future__ import annotations

import os
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="slmopt-test-cache-")
os.environ["SLMOPT_CACHE"] = _CACHE.name
