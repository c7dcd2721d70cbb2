"""The language of cascades: values, parser, printer, rules, sizes."""
