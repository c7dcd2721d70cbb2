"""Cascades run on NumPy or PyTorch."""
