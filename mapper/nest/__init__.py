"""Loop nests: choices, the resolved nest, reuse, stages."""
