"""Questions answered with all of it."""
