"""A PyTorch function as a cascade."""
