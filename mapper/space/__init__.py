"""What a search may choose: structures, tiles, constraints, objectives."""
