"""Code generation through MLIR: the step program in the torch dialect, compiled by IREE."""
