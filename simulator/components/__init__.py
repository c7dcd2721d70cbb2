"""What components cost: tables, formulas, other packages."""
