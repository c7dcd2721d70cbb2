"""What a design costs: time, energy, area."""
