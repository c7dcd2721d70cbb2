"""Calling a kernel: arguments, dispatch, launches, timing."""
