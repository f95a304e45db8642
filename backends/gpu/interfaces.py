"""Interfaces to devices as data: what TVM calls their language, what the language lacks, and where they are found."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CUDA", "OPENCL", "Interface"]


@dataclass(frozen=True)
class Interface:
    """What the code generator, the linker and `slmopt targets` must know of an interface.

    `prelude` stands before all kernels. It defines the functions of C's math library where the language spells them
    otherwise, and

        float slm_from_half(ushort bits), ushort slm_to_half(float x)   float16, rounded to even
        int slm_dot(int a, int b, int c)                                c + the sum of four products of signed bytes
    """

    name: str
    summary: str
    language: str  # TVM's kind of target
    opening: str  # how a kernel begins in it
    prelude: str
    suffix: str  # of a file of kernels
    source: str  # the C file of runtime/ that drives it
    libraries: tuple[str, ...]  # what that file loads
    options: tuple[str, ...]  # of a target, besides context and chunk
    install: tuple[str, ...]  # what gives a machine a device


_OPENCL_PRELUDE = """\
#define expf exp
#define expm1f expm1
#define logf log
#define log1pf log1p
#define sqrtf sqrt
#define sinf sin
#define cosf cos
#define tanhf tanh
#define erff erf
#define floorf floor
#define powf pow
#define rintf rint
#define fabsf fabs
inline float slm_from_half(ushort bits) { return vload_half(0, (const __private half *)&bits); }
inline ushort slm_to_half(float x) {
  ushort bits;
  vstore_half_rte(x, 0, (__private half *)&bits);
  return bits;
}
inline int slm_dot(int a, int b, int c) {
  char4 x = as_char4(a), y = as_char4(b);
  return c + (int)x.x * y.x + (int)x.y * y.y + (int)x.z * y.z + (int)x.w * y.w;
}
"""

_CUDA_PRELUDE = """\
#include <cuda_fp16.h>
#include <cstdint>
static __device__ inline float slm_from_half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
static __device__ inline uint16_t slm_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
static __device__ inline int slm_dot(int a, int b, int c) { return __dp4a(a, b, c); }
"""

OPENCL = Interface(
    name="opencl", summary="OpenCL devices", language="opencl", opening="__kernel", prelude=_OPENCL_PRELUDE,
    suffix=".cl", source="opencl.c", libraries=("libOpenCL.so.1",), options=("device",),
    install=("ocl-icd-libopencl1 (Debian)", "the device's OpenCL driver or pocl-opencl-icd (Debian; on the processor)"),
)  # fmt: skip
CUDA = Interface(
    name="cuda", summary="NVIDIA graphics processors", language="cuda", opening='extern "C" __global__',
    prelude=_CUDA_PRELUDE, suffix=".cu", source="cuda.c", libraries=("libcuda.so.1",), options=("arch", "device"),
    install=("NVIDIA's driver, of CUDA 12 or newer",),
)  # fmt: skip
