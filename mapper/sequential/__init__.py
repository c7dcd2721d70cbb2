"""The search Einsum by Einsum, counted as AccelForge does."""
