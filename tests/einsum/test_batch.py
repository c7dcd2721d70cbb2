"""Batch ranks stand before every tensor."""

from __future__ import annotations

import pytest

from einfuse.einsum.analysis.operations import count_operations
from einfuse.einsum.language.batch import with_batch
from einfuse.einsum.language.errors import EinfuseError
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.printer import render, render_einsum
from einfuse.einsum.language.shape import symbol
from einfuse.einsum.library.cascades import load


def test_every_tensor_gets_the_batch_ranks_it_lacks() -> None:
    batched = with_batch(load("attention/1-pass"), ["B", "H"])
    assert all(tensor.ranks[:2] == ("B", "H") for tensor in batched.tensors)
    lines = [render_einsum(einsum) for einsum in batched.einsums]
    assert "RM[b,h,0,p] = -inf" in lines
    assert "BK[b,h,e,m1,m0] = K[b,h,e,m1*M0+m0]" in lines
    assert "AV[b,h,f,p] = RNV[b,h,f,M1,p] / RD[b,h,M1,p]" in lines
    assert parse(render(batched)) == batched


@pytest.mark.parametrize("name", ["attention/1-pass", "attention/2-pass", "attention/3-pass"])
def test_work_grows_by_the_size_of_the_batch(name: str) -> None:
    alone, batched = count_operations(load(name)), count_operations(with_batch(load(name), "BH"))
    factor = symbol("B") * symbol("H")
    assert batched == {
        einsum: {operation: count * factor for operation, count in own.items()}
        for einsum, own in alone.items()
    }


def test_what_a_tensor_has_it_gets_no_second_time() -> None:
    cascade = parse("rank B, P, D, S\ninput X[B,P,D], W[D,S]\nY[b,p,s] = X[b,p,d] * W[d,s]")
    assert with_batch(cascade, ["B"], shared=["W"]) == cascade
    assert with_batch(cascade, ["B"]).tensor("W").ranks == ("B", "D", "S")


def test_gathers_filters_and_stops_are_batched_too() -> None:
    cascade = parse(
        "rank K, T\niter i over K\ninput V[K], TI[T], TOL[]\ninit:\nX[0] = 1\nloop:\n"
        "Y[i,t] = V[TI[t]: TI[t]>i]\nX[i+1] = max(X[i], Y[i,t]) :: max(t)\nstop X[i+1] < TOL[]"
    )
    text = render(with_batch(cascade, ["B"]))
    assert "Y[b,i,t] = V[b,TI[b,t]: TI[b,t]>i]" in text
    assert "stop X[b,i+1]<TOL[b]" in text


def test_what_the_batch_shares_cannot_depend_on_it() -> None:
    cascade = parse("rank M\ninput A[M], W[M]\nS[] = A[m] * W[m]\nY[m] = A[m] * S[]")
    assert with_batch(cascade, ["B"], shared=["W"]).tensor("S").ranks == ("B",)
    with pytest.raises(EinfuseError, match="S cannot be shared: it depends on A"):
        with_batch(cascade, ["B"], shared=["S"])
    with pytest.raises(EinfuseError, match="has no tensor Z to share"):
        with_batch(cascade, ["B"], shared=["Z"])


def test_an_iterating_variable_cannot_be_a_batchs() -> None:
    cascade = parse("rank K\niter b over K\ninput A[K]\nloop:\nX[b] = A[b]")
    with pytest.raises(EinfuseError, match="variable b iterates and cannot be a batch's"):
        with_batch(cascade, ["B"])
