"""slmopt: a compiler for small language models. Four verbs: load, optimize, compile, open.

Importing this package imports nothing heavy; each verb imports what it needs when called.
"""

from __future__ import annotations

__version__ = "0.1.0"
