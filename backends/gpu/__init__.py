"""Targets of graphics processors: OpenCL and CUDA, one code generator over both."""
