"""Compiled instructions against the model."""
