"""What it costs: cycles, traffic, energy, area."""

from .components.cost_model import find_cost_model as find_cost_model
from .components.cost_table import TableModel as TableModel
from .cost.charges import OPTIONS as OPTIONS
from .cost.model import evaluate as evaluate
from .cost.objectives import figures_of as figures_of
from .cost.objectives import find_objective as find_objective
from .cost.point import find_point as find_point
from .cost.reuse import find_reuse as find_reuse
from .events.machine import Recording as Recording
from .events.overheads import Overheads as Overheads
from .events.overheads import find_overheads as find_overheads
from .events.program import CAUSES as CAUSES
from .events.simulation import Simulation as Simulation
from .events.simulation import prepare as prepare
from .events.simulation import simulate as simulate
from .events.trace import render_trace as render_trace
from .events.waterfall import EPOCHS as EPOCHS
from .events.waterfall import draw_waterfall as draw_waterfall
from .functional.functional import simulate_functional as simulate_functional
from .result.evaluation import Evaluation as Evaluation
