"""Equivalent cascades that need fewer passes."""
