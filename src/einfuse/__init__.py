"""Einfuse: attention algorithms as Einsum cascades, mapped, simulated and measured."""
