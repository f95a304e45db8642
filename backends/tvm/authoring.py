"""What a lowering for the code generator "tvm" is written with: everything a plugin imports, from one stable place.

The short ways are `@elementwise`, one expression, and `@expansion`, other ops. The long way is a function of (lowering,
op) that says where the result lies (`lowering.allocate`), finds common rows (`lowering.joint_rows`), writes a kernel
(`write_kernel`, `Code`, vector arithmetic) and calls it (`lowering.call`). docs/writing-an-op.md shows all three.
"""

from slmopt.backends.tvm.code import Code, Memory, Register
from slmopt.backends.tvm.elementwise import Vectors, elementwise
from slmopt.backends.tvm.expansion import expansion
from slmopt.backends.tvm.isa import Isa
from slmopt.backends.tvm.kernel import Kernel, write_kernel
from slmopt.backends.tvm.lower import Argument, Lowering
from slmopt.backends.tvm.operands import known_size, optional_weight, required_weight
from slmopt.backends.tvm.row_output import each_chunk, write_row
from slmopt.backends.tvm.rows import Rows
from slmopt.backends.tvm.vector_math import add_all, broadcast, from_half, max_all
from slmopt.backends.tvm.views import Buffer, View
from slmopt.backends.tvm.weight_table import WeightSlot

__all__ = [
    "Argument",
    "Buffer",
    "Code",
    "Isa",
    "Kernel",
    "Lowering",
    "Memory",
    "Register",
    "Rows",
    "Vectors",
    "View",
    "WeightSlot",
    "add_all",
    "broadcast",
    "each_chunk",
    "elementwise",
    "expansion",
    "from_half",
    "known_size",
    "max_all",
    "optional_weight",
    "required_weight",
    "write_kernel",
    "write_row",
]
