"""Simulated against measured."""
