"""The lowering of backends/tvm/lower.py with device kernels."""

from __future__ import annotations

from collections.abc import Sequence

from slmopt.backends.gpu.device_code import DeviceKernel
from slmopt.backends.gpu.primitives import device_primitive
from slmopt.backends.tvm.kernel import Kernel
from slmopt.backends.tvm.lower import Argument, Lowering
from slmopt.backends.tvm.primitive import Leaf
from slmopt.errors import UnsupportedError
from slmopt.ir.dims import Dim
from slmopt.ir.graph import Op, Value, Weight

__all__ = ["DeviceLowering"]


class DeviceLowering(Lowering):
    """What has been lowered so far, for a device. `DEVICE.name` marks the lowerings meant for it: "tvm:OP@gpu"."""

    def call(
        self, op: Op, kernel: Kernel, arguments: Sequence[Argument], count: Dim, *, tokens: Dim | None = None
    ) -> None:
        """Launch a kernel over rows lo..hi of `count`."""
        if not isinstance(kernel, DeviceKernel) or tokens is not None:
            raise UnsupportedError(
                f"{op.describe()}: its kernel {kernel.name} is one for processors; a plugin offers one for devices "
                f"through the hook slmopt_lowerings, as 'tvm:{op.name}@{self.isa.name}'"
            )
        super().call(op, kernel, arguments, count)

    def primitive(
        self, op: Op, leaves: dict[Value | Weight, Leaf], out_strides: tuple[int, ...]
    ) -> tuple[Kernel, list[Value | Weight]]:
        """The kernel that computes `op` from `leaves`, and the leaves in the order of its pointers."""
        return device_primitive(op, leaves, out_strides)
