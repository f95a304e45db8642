"""The registry of ops. The core's ops are added here, by name and at once; plugins add theirs through a hook."""

from slmopt.ir.ops import attention, elementwise, language, linear_attention, reduce, shape
from slmopt.ir.spec import OpRegistry

__all__ = ["registry"]

registry = OpRegistry()
for _part in (elementwise, shape, reduce, language, attention, linear_attention):
    registry.add(_part.SPECS, "slmopt")
