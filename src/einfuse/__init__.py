"""Einfuse: attention algorithms as Einsum cascades, mapped, simulated and measured.

The names below are loaded on first use, so that ``import einfuse`` is quick and light.

>>> import einfuse as ef
>>> shape = {"B": 1, "H": 1, "M": 1024, "P": 1024, "E": 64, "F": 64}
>>> ef.evaluate(ef.load_design("fusemax"), shape).bound
'array_1d'
"""

from einfuse.lazy import attach

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach(__name__, __file__)
