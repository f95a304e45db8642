"""Code generation with TVM: kernels for one ISA description, and the step program that calls them."""
