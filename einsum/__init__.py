"""What is computed: cascades of Extended Einsums, no hardware.

The names that ``__init__.pyi`` lists are what other folders use; each is loaded on first use.
"""

from einfuse.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
