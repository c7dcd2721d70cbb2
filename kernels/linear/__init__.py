"""Linear attention and its recurrences."""
