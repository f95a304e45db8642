"""The pass `raise` and its parts: primitives of a traced model to the ops of a language model, by structure alone."""

from slmopt.passes.raise_.activation import RaiseActivation
from slmopt.passes.raise_.attention import RaiseAttention
from slmopt.passes.raise_.embedding import RaiseEmbedding
from slmopt.passes.raise_.glu import RaiseGlu
from slmopt.passes.raise_.linear import RaiseLinear
from slmopt.passes.raise_.norm import RaiseNorm
from slmopt.passes.raise_.raising import Raise
from slmopt.passes.raise_.rope import RaiseRope

__all__ = [
    "Raise", "RaiseActivation", "RaiseAttention", "RaiseEmbedding", "RaiseGlu", "RaiseLinear", "RaiseNorm", "RaiseRope",
]  # fmt: skip
