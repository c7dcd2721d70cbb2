"""The cascades that come along, and the facts of the zoo."""
