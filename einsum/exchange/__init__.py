"""Cascades read from and written to other tools' formats."""
