"""The pass `canonicalize`, in parts by idea."""

from slmopt.passes.canonicalize.canonicalize import Canonicalize, canonicalize

__all__ = ["Canonicalize", "canonicalize"]
