"""Kernels in C++ for bfloat16 on a CPU, compiled once with the user's own compiler; without one, PyTorch's are used."""
