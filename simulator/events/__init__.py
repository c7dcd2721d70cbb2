"""A design in time, event by event."""
