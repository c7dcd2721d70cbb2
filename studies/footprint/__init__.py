"""Buffer against sequence length, by passes."""
