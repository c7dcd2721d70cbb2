"""Where the search beats the published mappings."""
