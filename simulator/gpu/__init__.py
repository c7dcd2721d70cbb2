"""Kernel schedules on GPUs, block by block."""
