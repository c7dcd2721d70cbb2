"""The zoo by passes, work and buffer."""
