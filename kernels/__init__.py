"""The same algorithms on a real GPU; names are loaded on first use so that torch stays optional."""
