"""Where and when it is computed: architectures, mappings, counts."""
