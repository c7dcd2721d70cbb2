"""The Chrome trace: its format, and that a browser reads it."""

from __future__ import annotations

import functools
import http.server
import json
import math
import shutil
import subprocess
import threading
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from einfuse.mapper.design.design import load_design
from einfuse.simulator.events.machine import Recording
from einfuse.simulator.events.overheads import Overheads
from einfuse.simulator.events.simulation import Simulation, simulate
from einfuse.simulator.events.trace import render_trace
from einfuse.studies.analytic_vs_simulated.study import merged

SHAPE = {"B": 1, "H": 1, "M": 1024, "P": 1024, "E": 64, "F": 64}
DESIGNS = ("fusemax", "fusemax-architecture", "fusemax-cascade", "flat", "unfused")
CHARGED = {
    "nothing": Overheads(),
    "drain": Overheads(drain=True, bandwidth=True),
    "shared": Overheads(drain=True, interleaved=True),
    "apart": Overheads(drain=True, interleaved=True, decoupled=True, bandwidth=True),
}
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def traced(name: str, overheads: Overheads, *, one: bool = False) -> Simulation:
    design = load_design(name)
    return simulate(
        merged(design) if one else design, SHAPE, overheads=overheads, skip=False,
        recording=Recording(),
    )  # fmt: skip


def check_format(trace: dict[str, Any], tasks: int) -> None:
    """Google's Trace Event Format, as its readers take it: complete events, rows named."""
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    rows: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    named = {e["tid"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    starts = []
    for event in trace["traceEvents"]:
        assert {"name", "ph", "pid"} <= set(event)
        assert event["ph"] in ("X", "M")
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
            continue
        assert math.isfinite(event["ts"])
        assert math.isfinite(event["dur"])
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        assert event["tid"] in named
        starts.append(event["ts"])
        rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert len(starts) == tasks
    assert starts == sorted(starts)
    for spans in rows.values():  # a row does one thing at a time
        last = max(end for _, end in spans)
        assert all(a[1] <= b[0] + 1e-9 * last for a, b in pairwise(spans))


@pytest.mark.parametrize("charged", CHARGED)
@pytest.mark.parametrize("name", DESIGNS)
def test_a_trace_has_the_format(name: str, charged: str) -> None:
    run = traced(name, CHARGED[charged])
    trace = render_trace(run)
    check_format(json.loads(json.dumps(trace)), run.tasks)
    last = max(e["ts"] + e["dur"] for e in trace["traceEvents"] if e["ph"] == "X")
    assert last <= run.seconds * 1e6 * (1 + 1e-9)


def test_tasks_that_share_a_unit_stand_in_rows_of_it() -> None:
    run = traced("fusemax", CHARGED["shared"], one=True)
    trace = render_trace(run)
    check_format(trace, run.tasks)
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"]
    assert {"array_2d", "array_2d (2)", "array_1d", "array_1d (2)"} <= set(names)


PAGE = """<!doctype html><title>reading</title><pre id=out>no answer</pre><script>
fetch('trace.json').then(r => r.json()).then(trace => {
  const tasks = trace.traceEvents.filter(e => e.ph === 'X');
  const rows = new Map();
  for (const e of tasks) {
    if (!Number.isFinite(e.ts) || !Number.isFinite(e.dur) || e.dur < 0) throw 'no time';
    const end = rows.get(e.tid) ?? 0;
    if (e.ts < end - 1e-6) throw `row ${e.tid} does two things at ${e.ts}`;
    rows.set(e.tid, e.ts + e.dur);
  }
  const canvas = document.createElement('canvas').getContext('2d');
  for (const e of tasks) canvas.fillRect(e.ts, 10 * e.tid, e.dur, 8);
  document.getElementById('out').textContent = `${tasks.length} tasks in ${rows.size} rows`;
}).catch(e => { document.getElementById('out').textContent = `error: ${e}`; });
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here: the trace was not loaded")
def test_a_browser_reads_the_trace(tmp_path: Path) -> None:
    run = traced("fusemax", CHARGED["drain"])
    (tmp_path / "trace.json").write_text(json.dumps(render_trace(run)))
    (tmp_path / "index.html").write_text(PAGE)
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert BROWSER is not None
        done = subprocess.run(
            [
                BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--no-first-run", "--disable-background-networking", "--disable-sync",
                "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}",
                "--virtual-time-budget=10000", "--dump-dom",
                f"http://127.0.0.1:{server.server_port}/index.html",
            ],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        server.shutdown()
    assert f"{run.tasks} tasks in 3 rows" in done.stdout, done.stdout + done.stderr


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
