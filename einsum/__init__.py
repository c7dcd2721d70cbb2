"""What is computed: cascades of Extended Einsums, no hardware."""
