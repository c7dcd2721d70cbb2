"""AccelForge on the same cases."""
