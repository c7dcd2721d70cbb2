"""Questions answered with all of it: tables, figures and reports."""

from .frame.pass_graph import draw_passes as draw_passes
from .frame.study import STUDIES as STUDIES
from .frame.study import run_study as run_study
