"""Loops: generations are written before they are read, and tensors once."""

from __future__ import annotations

import warnings

import pytest

from einfuse.einsum.language.errors import CascadeError, CascadeWarning
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import generations

HEAD = "rank K, P\niter i over K\ninput A[K,P]\ninit:\nX[0,p] = 0\n"

BROKEN = {
    "no initialiser": (
        "rank K\niter i over K\ninput A[K]\nloop:\nX[i+1] = X[i] + A[i]",
        "X is read at a generation not yet written: nothing in 'init:' writes generation 0",
        (5, 12),
    ),
    "the first generation without initialiser": (
        "rank K\niter i over K\ninput A[K]\nloop:\nX[i+1] = A[i]\nY[i] = X[0]",
        "X is read at a generation not yet written: nothing in 'init:'",
        (6, 10),
    ),
    "a generation before the first": (
        "rank K\niter i over K\ninput A[K]\nloop:\nX[i] = A[i]\nY[i] = X[i-1]",
        "X is read at generation -1 of i",
        (6, 10),
    ),
    "the next generation before its line": (
        HEAD + "loop:\nZ[i,p] = X[i+1,p]\nX[i+1,p] = X[i,p] + A[i,p]",
        "X is read at a generation not yet written: its definition stands below, on line 8",
        (7, 10),
    ),
    "a generation too far": (
        HEAD + "loop:\nX[i+1,p] = A[i,p]\nZ[i,p] = X[i+2,p]",
        "X is read at a generation not yet written: the loop writes i+1",
        (8, 12),
    ),
    "the last generation inside the loop": (
        HEAD + "loop:\nX[i+1,p] = A[i,p]\nZ[i,p] = X[K,p]",
        "X is read at a generation not yet written: the loop writes i+1",
        (8, 12),
    ),
    "a fixed later generation": (
        HEAD + "loop:\nX[i+1,p] = A[i,p]\nZ[i,p] = X[3,p]",
        "X is read at a generation not yet written",
        (8, 12),
    ),
    "all generations inside the loop": (
        HEAD + "loop:\nX[i+1,p] = A[i,p]\nZ[i,p] = X[k,p]",
        "X is read at a generation not yet written",
        (8, 12),
    ),
    "its own generation": (
        HEAD + "loop:\nX[i+1,p] = X[i+1,p] + A[i,p]",
        "a cycle: X <- X",
        (7, 12),
    ),
    "a circle in one generation": (
        HEAD + "loop:\nX[i+1,p] = Z[i,p] + A[i,p]\nZ[i,p] = X[i+1,p]",
        "a cycle: X <- Z <- X",
        (7, 12),
    ),
    "two loop definitions": (
        HEAD + "loop:\nX[i+1,p] = A[i,p]\nX[i+1,p] = A[i,p]",
        "X is defined twice, first on line 5",
        (8, 1),
    ),
    "generation 0 twice": (
        HEAD + "loop:\nX[i,p] = A[i,p]",
        "X is defined twice",
        (7, 1),
    ),
    "an imperative update": (
        "rank K, P\niter i over K\ninput A[K,P]\nX[p] = 0\nloop:\nX[p] = A[k,p]",
        "X is defined twice, first on line 4: only generation 0 in init and generation v+1 in loop",
        (6, 1),
    ),
    "a write in the loop and after it": (
        HEAD + "loop:\nX[i+1,p] = A[i,p]\nfinal:\nX[i,p] = A[i,p]",
        "X is defined twice",
        (9, 1),
    ),
    "a write two generations ahead": (
        HEAD + "loop:\nX[i+2,p] = A[i,p]",
        "a loop writes generation i or i+1 of X",
        (7, 3),
    ),
    "a sum over the generations inside the loop": (
        HEAD + "loop:\nX[i+1,p] = A[i,p]\nS[p] = A[i,p]",
        "S reads generation i and has no index for it: inside 'loop:' an iterative variable",
        (8, 1),
    ),
    "a read in init of what the loop makes": (
        "rank K\niter i over K\ninput A[K]\nZ[k] = X[k]\nloop:\nX[i] = A[i]",
        "X is read before it is defined: its definition stands below, on line 6",
        (4, 8),
    ),
    "a stop on a later generation": (
        HEAD + "loop:\nX[i+1,p] = A[i,p]\nstop X[i+2,p] < 1",
        "X is read at a generation not yet written: a stop is asked after each generation",
        (8, 8),
    ),
    "a stop on the result": (
        HEAD + "loop:\nX[i+1,p] = A[i,p]\nstop Y[p] < 1\nfinal:\nY[p] = X[K,p]",
        "stop reads Y, which is defined in 'final:' only",
        (8, 6),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_wrong_order_is_told_and_pointed_at(name: str) -> None:
    text, message, (line, column) = BROKEN[name]
    with pytest.raises(CascadeError) as caught:
        parse(text)
    first, shown, caret = str(caught.value).splitlines()
    assert first.startswith(f"<cascade>:{line}:{column}: {message}"), first
    assert shown.strip() == text.splitlines()[line - 1]
    assert caret.index("^") == column + 3


SOUND = {
    "a recurrence": "loop:\nX[i+1,p] = X[i,p] + A[i,p]\nfinal:\nY[p] = X[K,p]",
    "the next generation after its line": "loop:\nX[i+1,p] = X[i,p]*A[i,p]\nZ[i,p] = X[i+1,p]",
    "the index written the other way": "loop:\nX[1+i,p] = X[i,p] + A[i,p]\nZ[i,p] = X[1+i,p]",
    "the first generation": "loop:\nX[i+1,p] = X[0,p] + A[i,p]",
    "an earlier generation behind a filter": "loop:\nX[i+1,p] = X[i-1: i>0,p] + A[i,p]",
    "all earlier generations": "loop:\nX[i+1,p] = X[k: k<=i,p] + A[i,p]",
    "all generations so far": "loop:\nX[i+1,p] = X[i,p]*A[i,p]\nZ[i,p] = X[k: k<=i+1,p]",
    "all generations after the loop": "loop:\nX[i+1,p] = A[i,p]\nfinal:\nY[p] = X[i,p] :: max(i)",
    "a step that an older generation feeds": (
        "W[0,p] = 0\nloop:\nX[i+1,p] = W[i,p]\nW[i+1,p] = X[i+1,p] + A[i,p]"
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_right_order_passes(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CascadeWarning)
        cascade = parse(HEAD + SOUND[name])
    assert generations(cascade, "X") == (1, 0)


def test_of_two_iterations_the_outer_decides_first() -> None:
    text = (
        "rank I, J\niter i over I\niter j over J\ninput A[I,J]\nX[0,j] = 0\nloop:\n"
        "X[i+1,j] = X[i,{}] + A[i,j]"
    )
    parse(text.format("j"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CascadeWarning)
        parse(text.format("j+1"))  # all of generation i is written: only the range can be wrong
