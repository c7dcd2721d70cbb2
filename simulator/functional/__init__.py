"""A simulation whose tasks carry numbers."""
