"""Makes a libcuda.so.1 that runs the kernels of an artifact on the processor: see cuda_stand_in.cpp."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

__all__ = ["make_stand_in"]

# What nvcc and its headers give to kernels, for a C++ compiler.
_HEADER = """\
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)
struct Index { int x, y, z; };
extern Index threadIdx, blockIdx;
void __syncthreads();
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
struct Half { uint16_t bits; };
inline Half __ushort_as_half(uint16_t bits) { return {bits}; }
inline uint16_t __half_as_ushort(Half x) { return x.bits; }
inline float __half2float(Half x) {
  float size = std::ldexp(float(x.bits & 0x3FF | (x.bits & 0x7C00 ? 0x400 : 0)), std::max(x.bits >> 10 & 31, 1) - 25);
  return x.bits & 0x8000 ? -size : size;
}
inline Half __float2half_rn(float x) {
  int power = std::max(std::ilogb(x) - 10, -24);
  int whole = int(std::nearbyint(std::ldexp(std::fabs(x), -power)));
  uint16_t size = whole < 1024 ? whole : (power + 24) * 1024 + whole;
  return {uint16_t(size | (std::signbit(x) ? 0x8000 : 0))};
}
inline int __dp4a(int a, int b, int c) {
  int8_t x[4], y[4];
  std::memcpy(x, &a, 4), std::memcpy(y, &b, 4);
  for (int i = 0; i < 4; i++) c += x[i] * y[i];
  return c;
}
"""
_KERNEL = re.compile(
    r'^extern "C" __global__ void __launch_bounds__\((\d+)\) (\w+)\(([^)]*)\) \{$(.*?)^\}$', re.MULTILINE | re.DOTALL
)


def make_stand_in(artifact: Path, directory: Path) -> Path:
    """A directory with a libcuda.so.1 that knows the kernels of a CUDA artifact."""
    directory.mkdir()
    source = (artifact / "kernels.cu").read_text()
    (directory / "cuda_fp16.h").write_text(_HEADER)
    (directory / "cuda.h").write_text("")
    (directory / "math_constants.h").write_text("#define CUDART_INF_F INFINITY\n")
    table = []
    for threads, name, parameters, body in _KERNEL.findall(source):
        types = [part.rpartition(" ")[0] for part in parameters.split(", ")]
        given = ", ".join(f"*({kind}*)given[{index}]" for index, kind in enumerate(types))
        meets = "true" if "__syncthreads" in body else "false"
        table.append(f'  {{"{name}", {threads}, {meets}, [](void **given) {{ {name}({given}); }}}},\n')
    driver = (Path(__file__).parent / "cuda_stand_in.cpp").read_text()
    entries = f"const Entry entries[] = {{\n{''.join(table)}}};\nconst int entry_count = {len(table)};\n"
    path = directory / "stand_in.cpp"
    source = source.replace("__shared__ alignas(64)", "alignas(64) __shared__")  # the order that C++ wants
    path.write_text("\n".join([driver, source, entries]))
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", f"-I{directory}"]
    subprocess.run(["g++", *flags, str(path), "-o", str(directory / "libcuda.so.1")], check=True)
    return directory
