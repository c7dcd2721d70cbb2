"""``python -m einfuse``."""

from einfuse.cli import main

main()
