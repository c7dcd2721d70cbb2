"""Kernels that decode: one query against a cache of keys."""
