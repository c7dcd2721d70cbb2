"""A loop nest at a shape, and what follows from it alone."""
