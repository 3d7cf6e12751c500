"""Kernels in C++ for a CPU, compiled once with the user's own compiler; without one, PyTorch's are used."""
