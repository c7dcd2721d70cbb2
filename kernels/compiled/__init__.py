"""Kernels compiled without a GPU: instructions against the model."""
