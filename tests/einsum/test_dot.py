"""Graphs of cascades."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from einfuse.einsum import load, names
from einfuse.einsum.exchange.dot import dot


def test_every_edge_joins_two_nodes_that_are_there() -> None:
    for name in names():
        text = dot(load(name))
        nodes = set(re.findall(r'^\s*"([^"]+)" \[', text, re.MULTILINE))
        edges = re.findall(r'^\s*"([^"]+)" -> "([^"]+)"', text, re.MULTILINE)
        assert edges and {end for edge in edges for end in edge} <= nodes
        assert text.count("{") == text.count("}")


def test_a_read_of_an_earlier_generation_is_dashed() -> None:
    lines = dot(load("attention/1-pass")).splitlines()
    dashed = [line for line in lines if "style=dashed" in line]
    assert len(dashed) == 4  # RM in the running maximum and its correction, RD, RNV
    assert all("RM[m1,p]" in line or "RD[m1,p]" in line or "RNV" in line for line in dashed)


def test_a_gather_is_dotted() -> None:
    assert 'label="IDX[p1,s]", style=dotted' in dot(load("attention/block-sparse"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("dot") is None, reason="graphviz is not installed")
@pytest.mark.parametrize("name", names())
def test_graphviz_reads_every_cascade(name: str) -> None:
    done = subprocess.run(["dot", "-Tcanon"], input=dot(load(name)), text=True, capture_output=True)
    assert done.returncode == 0 and done.stderr == ""
