"""The search over fusion groups, with lower bounds."""
