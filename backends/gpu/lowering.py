"""The lowering of backends/tvm/lower.py with device kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from slmopt.backends.gpu.device_code import DeviceKernel
from slmopt.backends.gpu.primitives import device_primitive
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.lower import Argument, Lowering
from slmopt.backends.tvm.primitive import Leaf, row_axes
from slmopt.backends.tvm.views import View
from slmopt.errors import UnsupportedError
from slmopt.ir.dims import Dim, product
from slmopt.ir.graph import Op, Value, Weight

__all__ = ["DeviceLowering"]


@dataclass
class DeviceLowering(Lowering):
    """What has been lowered so far, for a device. `DEVICE.name` marks the lowerings meant for it: "tvm:OP@gpu"."""

    kernels: dict[str, DeviceKernel] = field(default_factory=dict)

    def call(
        self, op: Op, kernel: Kernel, arguments: Sequence[Argument], count: Dim, *, tokens: Dim | None = None
    ) -> None:
        """Launch a kernel over rows lo..hi of `count`."""
        if not isinstance(kernel, DeviceKernel) or tokens is not None:
            raise UnsupportedError(
                f"{op.describe()}: its kernel {kernel.name} is one for processors; a plugin offers one for devices "
                f"through the hook slmopt_lowerings, as 'tvm:{op.name}@{self.isa.name}'"
            )
        self.kernels.setdefault(kernel.name, kernel)
        super().call(op, kernel, arguments, count)

    def _compute(self, op: Op, out: View) -> View:
        leaves: dict[Value | Weight, Leaf] = {}
        self._gather_leaves(op, leaves)
        kernel, order = device_primitive(op, leaves, out.strides)
        sources = [self.views[key] if isinstance(key, Value) else self.weights.raw(key) for key in order]
        axes, _ = row_axes(out.shape)
        count = product([out.shape[axis] for axis in axes])
        self.call(op, kernel, [out, *sources, "tokens", "position", "lo", "hi"], count)
        return out
