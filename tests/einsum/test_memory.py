"""Peak memory: against hand counts, and against what NumPy really allocates."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from einfuse.einsum.execution.memory import check_fits, peak_bytes, readable
from einfuse.einsum.execution.run import run
from einfuse.einsum.execution.sampling import draw_inputs
from einfuse.einsum.language.batch import with_batch
from einfuse.einsum.language.cascade import Cascade
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import bind
from einfuse.einsum.library.cascades import load

SIZES = {"B": 2, "H": 2, "E": 16, "F": 16, "P": 1024, "M": 512}


def attention(form: str) -> tuple[Cascade, dict[str, int]]:
    cascade = with_batch(load(f"attention/{form}"), ["B", "H"])
    return cascade, bind(cascade, {**SIZES, **({"M0": 32} if cascade.splits else {})})


def test_three_pass_attention_holds_one_matrix_of_scores() -> None:
    cascade, sizes = attention("3-pass")
    scores, row = 2 * 2 * 512 * 1024 * 4, 2 * 2 * 1024 * 4
    peak = peak_bytes(cascade, sizes, 4)
    # QK becomes SN becomes A in one buffer; the output is F = 16 rows, GM and SD one each
    assert scores < peak.bytes <= scores + (16 + 3) * row
    assert peak.at == "AV"


def test_one_pass_attention_holds_a_tile_of_scores() -> None:
    cascade, sizes = attention("1-pass")
    tile, state = 2 * 2 * 32 * 1024 * 4, 2 * 2 * 16 * 1024 * 4
    assert tile < peak_bytes(cascade, sizes, 4).bytes < 2 * tile + 6 * state


@pytest.mark.parametrize("form", ["1-pass", "2-pass", "3-pass", "3-pass-deferred"])
def test_the_estimate_is_near_what_a_run_allocates(form: str) -> None:
    cascade, sizes = attention(form)
    inputs = draw_inputs(cascade, sizes, 0, np.float32)
    run(cascade, inputs, sizes)
    tracemalloc.start()
    run(cascade, inputs, sizes)
    _, allocated = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    estimate = peak_bytes(cascade, sizes, 4).bytes
    assert 0.6 * allocated < estimate < 1.7 * allocated


def test_all_generations_of_wanted_tensors_count() -> None:
    cascade, sizes = attention("1-pass")
    names = [tensor.name for tensor in cascade.tensors]
    states = 2 * 2 * 17 * 16 * 1024 * 4  # RNV alone, with its 17 generations
    assert peak_bytes(cascade, sizes, 4, names).bytes > states


def test_a_gather_is_a_copy_and_a_view_is_not() -> None:
    text = "rank M, T=M\ninput V[M], I[T]\noutput Y\nG[t] = V[{}]\nY[] = G[t] * I[t]"
    sizes = {"M": 100, "T": 100}
    assert peak_bytes(parse(text.format("t")), sizes, 4).bytes == 4
    assert peak_bytes(parse(text.format("I[t]")), sizes, 4).bytes == 404


def test_what_does_not_fit_says_how_many_bytes_and_where() -> None:
    cascade, sizes = attention("3-pass")
    with pytest.raises(EinfuseError, match=r"would need about \d+ bytes \(8\..* MiB\).* at AV"):
        check_fits(cascade, sizes, 4, 2**20)
    check_fits(cascade, sizes, 4, 2**24)
    check_fits(cascade, sizes, 4, None)


def test_inputs_count_where_they_have_yet_to_be_made() -> None:
    cascade = parse("rank M\ninput A[M]\noutput Y\nY[] = A[m]")
    check_fits(cascade, {"M": 1000}, 4, 3000)
    with pytest.raises(EinfuseError, match="4004 bytes"):
        check_fits(cascade, {"M": 1000}, 4, 3000, count_inputs=True)


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [(0, "0.0 B"), (1023, "1023.0 B"), (1024, "1.0 KiB"), (5 * 2**39, "2.5 TiB")],
)
def test_bytes_are_readable(count_bytes: int, text: str) -> None:
    assert readable(count_bytes) == text
