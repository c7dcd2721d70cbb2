"""What follows from a cascade alone: passes, footprints, operations, traffic."""
