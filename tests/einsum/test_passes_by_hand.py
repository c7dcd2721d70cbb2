"""Pass counts of forty small cascades, each derived by hand from the definition of passes.

A read of an input waits for nothing. A value folded over the axis, or read at its end, in reverse
or where data says, has to be complete: one more sweep behind its producer. A root's passes are
the sweeps that read it or what is computed from it element by element.
"""

from __future__ import annotations

import pytest

from einfuse.einsum.analysis.footprint import footprint
from einfuse.einsum.analysis.lineage import trace
from einfuse.einsum.analysis.passes import count_passes
from einfuse.einsum.derivation.search import derive
from einfuse.einsum.exchange.torch.export import from_torch
from einfuse.einsum.language.parser import parse
from einfuse.einsum.language.shape import bind_known

pytestmark = pytest.mark.filterwarnings("ignore:.*never read")

K = "rank K, J = K\ninput A[K], B[K]\noutput Y\n"
LITERAL = "rank K = 6, J = 6\ninput A[K], B[K]\noutput Y\n"
SPLIT = "rank K\nsplit K -> K1, K0\ninput A[K]\noutput Y\n"
SPLITS = "rank K\nsplit K -> N1, N0\nsplit K -> K1, K0\ninput A[K]\noutput Y\n"
SIZES = "rank K = 6, K0 = 2\nsplit K -> K1, K0\ninput A[K]\noutput Y\n"
WRITTEN = "rank K1 = 3, K0\nsplit K -> K1, K0\ninput A[K], B[]\noutput Y\n"
JOINED = "rank M, L, N\ninput A[M], B[L]\noutput Y\n"
SELF = "rank M, N = M, B, E\ninput X[B,M], WQ[B,E], WK[B,E]\noutput AV\n"
SOFTMAX = ("QK[n,m] = Q[e,n] * K[e,m]\nG[n] = QK[n,m] :: max(m)\nS[n,m] = exp(QK[n,m] - G[n])\n"
           "D[n] = S[n,m]\nAV[e,n] = S[n,m] * K[e,m] / D[n]")  # fmt: skip
TOKENS = {v: f"Q[e,{v}] = X[b,{v}] * WQ[b,e]\nK[e,m] = X[b,m] * WK[b,e]\n" for v in "nm"}
WINDOWS = "rank AY, TY, AX, TX, X, P\ninput Q[P]\noutput Y\n"
HALVES = "rank E = 8, H = 4\ninput X[E]\noutput Y\n"

# name, cascade, rank, sweeps, passes of the roots
BY_HAND = [
    # Names of bound variables and of equal ranks.
    ("a sum over a renamed variable, then a map", K + "S[] = A[j]\nY[k] = A[k] * S[]", "K", 2,
     {"A": 2, "B": 0}),
    ("the same asked for by the other name", K + "S[] = A[j]\nY[k] = A[k] * S[]", "J", 2,
     {"A": 2, "B": 0}),
    ("sizes that are equal numbers", LITERAL + "S[] = A[j]\nY[] = A[k] * S[]", "K", 2,
     {"A": 2, "B": 0}),
    ("a maximum by one name and sums by two others",
     K + "G[] = A[k] :: max(k)\nS[] = exp(A[j] - G[]) :: +(j)\nY[k] = exp(A[k] - G[]) / S[]", "K",
     3, {"A": 3, "B": 0}),
    ("a map by one name, folds by another",
     K + "T[j] = exp(A[j])\nS[] = T[k]\nY[j] = T[j] / S[]", "K", 2, {"A": 2, "B": 0}),
    ("independent folds share a sweep", K + "S[] = A[j]\nT[] = A[k] :: max(k)\nY[] = S[] + T[]",
     "K", 1, {"A": 1, "B": 0}),
    ("an outer product of two names of one rank is a plane",
     K + "T[k,j] = A[k] * B[j]\nY[k] = T[k,j]", "K", 1, {"A": 1, "B": 1}),
    # Prefix and suffix sums by two names.
    ("a running sum by two names", K + "Y[k] = A[j: j<=k]", "K", 1, {"A": 1, "B": 0}),
    ("prefix sums, then suffix sums of them", K + "P[k] = A[j: j<=k]\nY[k] = P[j: j>=k]", "K", 2,
     {"A": 2, "B": 0}),
    ("prefix sums by one name, suffix sums by the other",
     K + "P[k] = A[j: j<=k]\nY[j] = P[k: k>=j]", "K", 2, {"A": 2, "B": 0}),
    ("prefix sums twice", K + "P[k] = A[j: j<=k]\nY[j] = P[k: k<j]", "K", 1, {"A": 1, "B": 0}),
    ("prefix and suffix sums of two inputs", K + "P[k] = A[j: j<=k]\nS[k] = B[j: j>=k]\n"
     "Y[k] = P[k] + S[k]", "K", 2, {"A": 1, "B": 1}),  # either may be the one that shares with Y
    ("a running sum and its last value", K + "P[k] = A[j: j<=k]\nY[j] = P[j] / P[K-1]", "K", 2,
     {"A": 2, "B": 0}),
    ("a suffix sum and its last value", K + "P[k] = A[j: j>=k]\nY[j] = P[j] / P[K-1]", "K", 1,
     {"A": 1, "B": 0}),
    # Views: splits, a second split, literal sizes, copies.
    ("a fold in tiles, a map over the whole",
     SPLIT + "S[] = A[k1*K0+k0] :: +(k1,k0)\nY[k] = A[k] * S[]", "K", 2, {"A": 2}),
    ("the split that comes second is used",
     SPLITS + "S[] = A[k1*K0+k0] :: max(k1,k0)\nY[k] = A[k] - S[]", "K", 2, {"A": 2}),
    ("a fold in tiles of one size, a map in tiles of another",
     SPLITS + "S[] = A[k1*K0+k0] :: max(k1,k0)\nY[n1,n0] = A[n1*N0+n0] - S[]", "K", 2, {"A": 2}),
    ("a map in tiles read in tiles of another size",
     SPLITS + "T[k1,k0] = exp(A[k1*K0+k0])\nU[k] = T[k/K0, k%K0]\nY[n1,n0] = exp(U[n1*N0+n0])",
     "K", 1, {"A": 1}),
    ("maxima of tiles of one size, their maximum, tiles of another",
     SPLITS + "L[k1] = A[k1*K0+k0] :: max(k0)\nG[] = L[k1] :: max(k1)\n"
     "Y[n1] = exp(A[n1*N0+n0] - G[]) :: +(n0)", "K", 2, {"A": 2}),
    ("a maximum of each tile corrects the tile",
     SPLIT + "L[k1] = A[k1*K0+k0] :: max(k0)\nY[k1] = exp(A[k1*K0+k0] - L[k1]) :: +(k0)", "K", 1,
     {"A": 1}),
    ("summaries are swept twice, keys once",
     SPLIT + "L[k1] = A[k1*K0+k0] :: max(k0)\nG[] = L[k1] :: max(k1)\nY[k1] = L[k1] - G[]", "K", 2,
     {"A": 1}),
    ("a literal size in a view", SIZES + "S[] = A[k1*2+k0] :: +(k1,k0)\nY[k] = A[k] * S[]", "K", 2,
     {"A": 2}),
    ("a literal size and a literal end", SIZES + "T[k] = exp(A[k1*2+k0: k1*2+k0==k])\n"
     "Y[k] = T[k] / T[5]", "K", 2, {"A": 2}),
    ("a copy of a copy", K + "C[k] = A[k]\nD[j] = C[j]\nS[] = D[k]\nY[k] = C[k] * S[]", "K", 2,
     {"A": 2, "B": 0}),
    ("a reversed copy of an input waits for nothing",
     K + "C[k] = A[K-1-k]\nY[k] = exp(C[k]) * A[k]", "K", 1, {"A": 1, "B": 0}),
    ("a copy reversed twice is a copy",
     K + "T[k] = exp(A[k])\nC[k] = T[K-1-k]\nD[k] = C[K-1-k]\nY[k] = D[k] * T[k]", "K", 1,
     {"A": 1, "B": 0}),
    ("what is computed and read in reverse waits for the whole",
     K + "T[k] = exp(A[k])\nC[k] = T[k]\nY[k] = C[K-1-k] * A[k]", "K", 2, {"A": 2, "B": 0}),
    ("a tile flattened and split again", SPLIT + "T[k1,k0] = exp(A[k1*K0+k0])\n"
     "F[k1*K0+k0] = T[k1,k0]\nS[] = F[k]\nY[k] = F[k] * S[]", "K", 2, {"A": 2}),
    ("an output that is a copy is swept",
     K.replace("output Y", "output Y, C") + "C[k] = A[k]\nS[] = C[k]\nY[k] = C[k] * S[]", "K", 2,
     {"A": 2, "B": 0}),
    ("a shift of a copy streams", K + "T[k] = exp(A[k])\nC[k] = T[k]\nY[k] = C[k+1: k+1<K]", "K", 1,
     {"A": 1, "B": 0}),
    ("a copy is read where data says", K + "C[k] = A[k]\nY[k] = C[B[k]]", "K", 1,
     {"A": 1, "B": 1}),
    # Views in another order beside a shift: reads of an input wait for nothing, a copy is one.
    ("a shift beside the reversal of a copy",
     K + "T[k] = A[k]\nY[k] = A[k+1: k+1<K] * T[K-1-k]", "K", 1, {"A": 1, "B": 0}),
    ("the same, then a fold of both", K + "T[k] = A[k]\nE[k] = A[k+1: k+1<K] * T[K-1-k]\n"
     "S[] = E[k]\nY[k] = E[k] / S[]", "K", 2, {"A": 2, "B": 0}),
    ("the same, of what is computed",
     K + "E[k] = exp(A[k])\nT[k] = E[k]\nY[k] = E[k+1: k+1<K] * T[K-1-k]", "K", 2,
     {"A": 2, "B": 0}),
    ("the same, folded before", K + "T[k] = A[k]\nS[] = T[K-1-k]\n"
     "Y[k] = A[k+1: k+1<K] * S[] + T[K-1-k]", "K", 2, {"A": 2, "B": 0}),
    ("the same, beside a prefix sum", K + "T[k] = A[k]\nP[k] = T[j: j<=k]\n"
     "Y[k] = A[k+1: k+1<K] * T[K-1-k] + P[k]", "K", 1, {"A": 1, "B": 0}),
    # Two axes of one rank: queries and keys of one input, a matrix and a vector.
    ("a softmax over the keys, queries of the same input", SELF + TOKENS["n"] + SOFTMAX, "M", 3,
     {"X": 3}),
    ("the same asked for by the name of the queries", SELF + TOKENS["n"] + SOFTMAX, "N", 3,
     {"X": 3}),
    ("the queries by the name of the keys", SELF + TOKENS["m"] + SOFTMAX, "M", 3, {"X": 3}),
    ("the map of a softmax that normalises its keys first", SELF
     + "T[b] = X[b,m]\nQ[e,m] = (X[b,m] - T[b]) * WQ[b,e]\nK[e,m] = (X[b,m] - T[b]) * WK[b,e]\n"
     + SOFTMAX, "M", 4, {"X": 4}),
    ("a plane elsewhere does not part two names",
     K.replace("output Y", "output Y, T") + "T[k,j] = A[k] * A[j]\nS[] = A[k]\nY[j] = A[j] * S[]",
     "J", 2, {"A": 2, "B": 0}),
    ("a square matrix times a vector, then a map of the vector",
     "rank K, J = K\ninput A[K], W[K,J]\noutput Y\nS[k] = A[j] * W[k,j]\nY[k] = A[k] / S[k]", "K",
     2, {"A": 2, "W": 1}),
    # Views of several digits without a split.
    ("a view of four digits folded, then a map", WINDOWS
     + "S[] = Q[(ay*TY+ty)*X+ax*TX+tx] :: max(ay,ax,ty,tx)\nY[p] = Q[p] * S[]", "P", 2, {"Q": 2}),
    ("windows of two dimensions", WINDOWS.replace("P\n", "P, I = 3, J = 3\n")
     + "Y[] = Q[(ay+i)*X+ax+j] :: max(ay,ax,i,j)", "P", 1, {"Q": 1}),
    ("summaries by a rank that equals the tiles",
     SPLIT.replace("rank K", "rank K, J = K1") + "L[j] = A[j*K0+k0] :: max(k0)\n"
     "G[] = L[j] :: max(j)\nY[k1] = exp(A[k1*K0+k0] - G[]) :: +(k0)", "K", 2, {"A": 2}),
    # Tiles written out.
    ("a running maximum and sums, tile by tile", WRITTEN + "".join(
        f"L{c}[] = A[{c}*K0+k0] :: max(k0)\nR{c + 1}[] = max(R{c}[], L{c}[])\n"
        f"S{c}[] = exp(A[{c}*K0+k0] - R{c + 1}[]) :: +(k0)\n"
        f"D{c + 1}[] = D{c}[] * exp(R{c}[] - R{c + 1}[]) + S{c}[]\n" for c in range(3)
     ).replace("R0", "B").replace("D0", "B") + "Y[] = D3[]", "K", 1, {"A": 1}),
    ("a maximum over all, then sums, tile by tile", WRITTEN + "".join(
        f"E{c}[k0] = tanh(A[{c}*K0+k0])\nL{c}[] = E{c}[k0] :: max(k0)\n" for c in range(3)
     ) + "G[] = max(L0[], max(L1[], L2[]))\n" + "".join(
        f"S{c}[] = exp(E{c}[k0] - G[]) :: +(k0)\n" for c in range(3)
     ) + "Y[] = S0[] + S1[] + S2[]", "K", 2, {"A": 2}),
    ("tiles in falling order", WRITTEN + "T[] = A[2*K0+k0] * B[]\nU[] = A[1*K0+k0] * T[]\n"
     "Y[] = A[0*K0+k0] * U[]", "K", 1, {"A": 1}),
    ("tiles in rising, then in falling order", WRITTEN + "R[] = A[0*K0+k0] * B[]\n"
     "S[] = A[1*K0+k0] * R[]\nT[] = A[2*K0+k0] * S[]\nU[] = A[1*K0+k0] * T[]\n"
     "Y[] = A[0*K0+k0] * U[]", "K", 2, {"A": 2}),
    # Pieces: concatenations, halves, rolls.
    ("softmax over a concatenation", JOINED + "C[n] = A[n: n<M] + B[n-M: n>=M]\n"
     "G[] = C[n] :: max(n)\nS[] = exp(C[n] - G[]) :: +(n)\nY[n] = exp(C[n] - G[]) / S[]", "N", 3,
     {"A": 3, "B": 3}),
    ("a new part computed, then appended", JOINED + "D[l] = exp(B[l])\n"
     "C[n] = A[n+0: n<M] + D[n-M: n>=M]\nG[] = C[n] :: max(n)\nY[n] = C[n] - G[]", "N", 2,
     {"A": 2, "B": 2}),
    ("a gate of two halves, normalised",
     HALVES + "T[h] = X[h+0] * X[h+4]\nS[] = T[h]\nY[h] = T[h] / S[]", "E", 2, {"X": 2}),
    ("the halves of what is computed lie apart",
     HALVES + "Z[e] = exp(X[e])\nY[h] = Z[h+0] * Z[h+4]", "E", 2, {"X": 2}),
    ("a roll, then a softmax", "rank E = 8\ninput X[E]\noutput Y\n"
     "G[] = X[(e+7)%8] :: max(e)\nY[e] = X[(e+7)%8] - G[]", "E", 2, {"X": 2}),
    ("a few first coordinates are no fiber",
     "rank M, S\ninput X[M], W[S]\noutput Y\nY[] = X[s+0] * W[s]", "M", 0, {"X": 0}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "rank", "sweeps", "roots"), [c[1:] for c in BY_HAND], ids=[c[0] for c in BY_HAND]
)
def test_counts_are_those_derived_by_hand(
    text: str, rank: str, sweeps: int, roots: dict[str, int]
) -> None:
    report = count_passes(parse(text), rank)
    assert (report.sweeps, report.roots) == (sweeps, roots)


def test_a_footprint_does_not_depend_on_the_name_of_a_bound_variable() -> None:
    text = K + "G[] = A[k] :: max(k)\nS[] = exp(A[{v}] - G[]) :: +({v})\nY[] = S[] + G[]"
    found = [str(footprint(parse(text.format(v=v)), "K")) for v in "kj"]
    assert found[0] == found[1] == "K + 3"  # all of A, one value of it, G and S


def test_a_footprint_does_not_depend_on_copies_and_further_splits() -> None:
    text = "G[] = {a}[k] :: max(k)\nY[k] = exp({a}[k] - G[])"
    plain = footprint(parse("rank K\ninput A[K]\noutput Y\n" + text.format(a="A")), "K")
    copy = "rank K\ninput A[K]\noutput Y\nC[k] = A[k]\n" + text.format(a="C")
    assert str(plain) == str(footprint(parse(copy), "K")) == "K + 2"
    split, splits = (str(footprint(parse(h + text.format(a="A")), "K")) for h in (SPLIT, SPLITS))
    assert split == "K0*K1 + K0 + 1"  # a tile at a time, where the sweep is over tiles
    assert splits == split.replace("K", "N")


def test_what_one_direction_leaves_for_the_other_is_held() -> None:
    assert str(footprint(parse(K + "P[k] = A[j: j<=k]\nY[k] = P[j: j>=k]"), "K")) == "K + 1"


@pytest.mark.parametrize("v", "kj")
def test_who_may_share_a_loop_does_not_depend_on_names(v: str) -> None:
    text = K + f"C[{v}] = A[{v}]\nS[] = C[{v}]\nT[] = A[{v}] :: max({v})\nY[k] = A[k] * S[]"
    dependence = trace(parse(text), "K")
    assert dependence.can_share("S", "T")
    assert not dependence.can_share("S", "Y")


def test_directions_in_a_loop_that_reads_both_ways_are_found() -> None:
    text = (
        "rank K\niter i over K\ninput A[K]\noutput Y\ninit:\nR[0] = 0\nloop:\n"
        "E[i] = exp(A[K-1-i])\nT[i] = R[i] * E[i]\nR[i+1] = T[i] + A[i]\nfinal:\nY[] = R[K]"
    )
    report = count_passes(parse(text), "K")
    assert (report.passes, report.sweeps) == (1, 1)


def test_a_derivation_reuses_the_split_that_is_there() -> None:
    text = SPLIT + "G[] = A[k] :: max(k)\nS[] = exp(A[k] - G[]) :: +(k)\nY[] = log(S[]) + G[]"
    found = derive(parse(text), "K")
    assert (1, True) in {(d.passes, d.stable) for d in found}
    for derived in found:
        assert [s.outer for s in derived.cascade.splits] == ["K1"]
        assert count_passes(parse(derived.text), "K").passes == derived.passes


@pytest.mark.parametrize(("given", "inner"), [("K = 4096, K1 = 8", 512), ("K0 = 64", 64)])
def test_the_tiles_of_a_derivation_have_the_sizes_of_the_text(given: str, inner: int) -> None:
    text = (
        f"rank K\nrank {given}\nsplit K -> K1, K0\ninput A[K]\noutput Y\n"
        "G[] = A[k] :: max(k)\nS[] = exp(A[k] - G[]) :: +(k)\nY[] = log(S[]) + G[]"
    ).replace("rank K\nrank K =", "rank K =")
    streamed = [d.cascade for d in derive(parse(text), "K") if d.cascade.loop]
    assert streamed
    assert all(bind_known(c)["K0"] == inner for c in streamed)


def test_functions_of_pytorch_that_cut_and_join_their_keys_pass_over_them_thrice() -> None:
    torch = pytest.importorskip("torch")

    def gated(x):  # type: ignore[no-untyped-def]
        a, b = x.chunk(2, dim=-1)
        return torch.softmax(torch.cat([a * torch.sigmoid(b), b], -1), -1)

    def rolled(x):  # type: ignore[no-untyped-def]
        return torch.softmax(x.roll(1, -1), -1)

    def cached(q, k, new, v):  # type: ignore[no-untyped-def]
        return torch.softmax(q @ torch.cat([k, new], 0).T, -1) @ v

    def sunk(q, k, v, s):  # type: ignore[no-untyped-def]
        logits = torch.cat([q @ k.T, s.expand(q.shape[0], 1)], -1)
        return torch.softmax(logits, -1)[:, :-1] @ v

    zeros = torch.zeros
    found = [
        (from_torch(gated, zeros(3, 8)), "X"),
        (from_torch(rolled, zeros(3, 8)), "X"),
        (from_torch(cached, zeros(4, 5), zeros(6, 5), zeros(2, 5), zeros(8, 7)), "K"),
        (from_torch(sunk, zeros(4, 5), zeros(6, 5), zeros(6, 5), zeros(1, 1)), "K"),
    ]
    for cascade, keys in found:
        report = count_passes(cascade)
        assert (report.sweeps, report.roots[keys]) == (3, 3), report
