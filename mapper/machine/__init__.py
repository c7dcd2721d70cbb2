"""Architectures, and the formulas their figures are written in."""
