"""The gradient of a cascade, as a cascade."""
