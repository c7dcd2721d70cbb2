"""The README: its commands exist, its numbers are what the study prints, its cascade runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import typer
import yaml

import einfuse as ef
from einfuse.cli import app
from einfuse.mapper.space.constraints import parse_constraints
from einfuse.studies.fusemax import study as fusemax

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_of_the_readme_exists() -> None:
    known = set(typer.main.get_group(app).commands)
    named = re.findall(r"^einfuse ([a-z-]+)", README, re.MULTILINE)
    assert len(named) > 5
    assert set(named) <= known
    for target in re.findall(r"^make ([a-z]+)", README, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_file_that_the_readme_links_is_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_its_numbers_are_those_of_the_study() -> None:
    workloads = fusemax.select_workloads()
    attention = {a: fusemax.attention_table(workloads, a) for a in fusemax.ACCOUNTINGS}
    layer = {a: fusemax.layer_table(workloads, attention[a], a) for a in fusemax.ACCOUNTINGS}
    table = fusemax.headline_table(attention, layer)
    speedups = table[(table["quantity"] == "speed-up") & (table["accounting"] == "published")]
    printed = {f"{value:.4f}x" for value in speedups["here_arithmetic_mean"]}
    assert set(re.findall(r"\b\d+\.\d{4}x", README)) == printed
    energies = table[(table["quantity"] == "energy") & (table["baseline"] == "flat")]
    shares = {f"{100 * value:.2f} %" for value in energies["here_arithmetic_mean"]}
    assert set(re.findall(r"\b\d+\.\d{2} %", README)) <= shares


def test_the_page_on_mappings_is_right() -> None:
    page = (ROOT / "docs" / "mapping.md").read_text(encoding="utf-8")
    given = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert given is not None and code is not None
    constraints = parse_constraints(yaml.safe_load(given.group(1)), "docs/mapping.md")
    shape = {"M": 4096, "P": 4096, "E": 64, "F": 64}
    ef.MapSpace(
        ef.load_cascade("attention/1-pass"), ef.load_architecture("fusemax"), shape, constraints
    )
    found: dict[str, Any] = {}
    exec(code.group(1), found)
    assert found["result"].optimal


def test_its_own_cascade_does_what_it_says() -> None:
    text = re.search(r'ef\.parse\("""(.*?)"""\)', README, re.DOTALL)
    assert text is not None
    cascade = ef.parse(text.group(1))
    assert ef.passes(cascade, "K").passes == 2
    assert 1 in [one.passes for one in ef.derive(cascade, "K")]
    random = np.random.default_rng(0)
    x, w = random.normal(size=8), random.normal(size=(8, 3))
    expected = (x / np.sqrt(np.mean(x * x))) @ w
    np.testing.assert_allclose(ef.run(cascade, {"X": x, "W": w})["Y"], expected, rtol=1e-12)


def test_the_two_files_of_the_readme_fit_each_other(tmp_path: Path) -> None:
    """As printed, with the cascade that a comment names: C = A B on the chip of the second file."""
    design, chip = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    product = "rank M, N, K\ninput A[M,K], B[K,N]\noutput C\nC[m,n] = A[m,k] * B[k,n]\n"
    for name, text in {"my-gemm.yaml": design, "my-chip.yaml": chip, "gemm.txt": product}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = ef.evaluate(ef.load_design(tmp_path / "my-gemm.yaml"), {"M": 1024, "N": 1024, "K": 512})
    assert found.cycles == (1024 // 64) ** 2 * 512  # a tile of 64 by 64 at a time, K in time
