"""Measuring kernels on a device."""
