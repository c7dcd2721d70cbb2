"""``python -m einfuse``."""

from einfuse.cli import main

if __name__ == "__main__":
    main()
