"""Designs: a cascade, an architecture and a mapping in one file."""
