"""Finding the best mapping, explaining it, writing it down."""
