"""What it costs: cycles, traffic, energy, area."""
