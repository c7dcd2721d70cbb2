"""TeAAL's files, both ways. The files are those of its compiler's tests, in our own words."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum import CascadeError, CascadeWarning, EinfuseError, load, parse, render, run
from einfuse.einsum.exchange.teaal import read_teaal, write_teaal

GAMMA = """
einsum:
  declaration:
    A: [K, M]
    B: [K, N]
    T: [K, M, N]
    Z: [M, N]
  expressions:
    - T[k,m,n] = take(A[k,m], B[k,n], 1)
    - Z[m,n] = T[k,m,n] * A[k,m]
"""


def _file(declaration: str, *expressions: str) -> str:
    listed = "".join(f'\n    - "{expression}"' for expression in expressions)
    return f"einsum:\n  declaration: {declaration}\n  expressions:{listed}\n"


def test_gamma_is_read_and_computes_a_matrix_product() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 3)), rng.standard_normal((4, 5))
    a[1, 2] = b[2, 0] = 0
    found = run(read_teaal(GAMMA), {"A": a, "B": b}, all_tensors=True)
    np.testing.assert_allclose(found["Z"], a.T @ b)
    taken = np.where((a[:, :, None] != 0) & (b[:, None, :] != 0), b[:, None, :], 0)
    np.testing.assert_array_equal(found["T"], taken)


def test_what_is_read_is_written_and_read_back_equal() -> None:
    cascade = read_teaal(GAMMA)
    assert read_teaal(write_teaal(cascade)) == cascade


def test_a_written_layer_is_read_back_with_equal_einsums() -> None:
    layer = load("layer/gemms")
    back = read_teaal(write_teaal(layer))
    assert [e.expression for e in back.einsums] == [e.expression for e in layer.einsums]


def test_a_convolution_has_affine_indices() -> None:
    cascade = read_teaal(_file("{I: [W], F: [S], O: [Q]}", "O[q] = I[2 * q + s] * F[s]"))
    assert render(cascade).endswith("O[q] = I[2*q+s] * F[s]\n")
    image, kernel = np.arange(7.0), np.array([1.0, -1.0, 2.0])
    expected = [image[2 * q : 2 * q + 3] @ kernel for q in range(3)]
    found = run(cascade, {"I": image, "F": kernel}, {"Q": 3})["O"]
    np.testing.assert_array_equal(found, expected)
    assert read_teaal(write_teaal(cascade)) == cascade


def test_two_indices_of_one_rank_have_one_size() -> None:
    cascade = read_teaal(_file("{A: [K, M], Z: [M, N]}", "Z[m, n] = A[k, m] * A[k, n]"))
    a = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(run(cascade, {"A": a})["Z"], a.T @ a)


def test_sums_of_products_and_scalars_are_read() -> None:
    cascade = read_teaal(_file("{A: [M], B: [M], Z: [M]}", "Z[m] = a * A[m] + b * B[m]"))
    ones = np.ones(3)
    found = run(cascade, {"A": ones, "B": 2 * ones, "a": 3.0, "b": 4.0})["Z"]
    np.testing.assert_array_equal(found, 11 * ones)


def test_a_split_is_written_with_the_sizes_of_a_shape() -> None:
    text = "split M -> M1, M0\ninput A[M], B[M0]\nZ[m1] = A[m1*M0+m0] * B[m0]"
    with pytest.raises(CascadeError, match=r"whole coefficients in A\[m1\*M0\+m0\].*--shape M0="):
        write_teaal(parse(text))
    assert "A[4 * m1 + m0] * B[m0]" in write_teaal(parse(text), {"M0": 4})


def test_the_mapping_of_a_file_is_left_out_with_a_warning() -> None:
    with pytest.warns(CascadeWarning, match="left out: mapping, format"):
        read_teaal(GAMMA + "mapping: {}\nformat: {}\n")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("Y[p] = A[m,p] :: max(m)", r"the reduction max\(m\)"),
        ("Y[m,p] = exp(A[m,p])", r"the function exp\(\.\.\.\)"),
        ("Y[m,p] = A[m,p] - B[m]", "the subtraction in A"),
        ("Y[m,p] = A[m,p] / B[m]", "the division A"),
        ("Y[m,p] = A[m,p] * (B[m] + B[m])", "a sum within a product"),
        ("Y[m,p] = 2 * A[m,p]", "the value 2 without a tensor"),
        ("Y[m,p] = A[m: m<=p,p]", "the filter m<=p"),
        ("Y[m] = A[m,0]", "with a constant or a minus"),
        ("Y[m,p] = A[3-m,p]", "with a constant or a minus"),
        ("Y[m,p] = A[m/2,p]", "not affine"),
        ("Y[m,p] = A[B[m],p]", "the gather through B"),
        ("Y[t,p] = A[m,p] :: topk(m -> t)", r"the populate topk\(\.\.\.\)"),
        ("Y[m,p] = A[m,p] + B[m] @ inter", "the merge '@ inter'"),
        ("Y[p] = A[m,p] + C[p]", "reduced over different variables"),
    ],
)
def test_what_teaal_cannot_express_is_refused_by_name(line: str, named: str) -> None:
    text = f"rank M, P, T\ninput A[M,P], B[M], C[P]\n{line}\nX[] = B[m] + A[m,p] * C[p] * B[m]"
    with pytest.raises(CascadeError, match=f"TeAAL cannot express.*{named}"):
        write_teaal(parse(text))


def test_a_loop_is_refused_by_name() -> None:
    with pytest.raises(CascadeError, match=r"1-pass:\d+.*a loop \(iter m1 over M1\)"):
        write_teaal(load("attention/1-pass"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("einsum: [", r"f\.yaml:1:\d+: not YAML"),
        ("[]", "expected a mapping of keys to values, found list"),
        ("{}", "expected a mapping under 'einsum', found nothing"),
        ("einsum: {declaration: {A: [K]}}", "expected a list under 'expressions'"),
        (_file("{A: K}", "Z[k] = A[k]"), "expected the ranks of A as a list"),
        (_file("{A: [k]}", "Z[k] = A[k]"), "a rank is upper case, found 'k'"),
        (_file("{A: [K], Z: [K]}", "Z[k] = exp(A[k])"), r"cannot hold 'exp\(A\[k\]\)'"),
        (_file("{A: [K], Z: [K]}", "Z[k] = B[k]"), "tensor B is not declared"),
        (_file("{A: [K], Z: [K]}", "Z[k] = A[k,k]"), r"A has ranks \[K\], found 2 indices"),
        (_file("{A: [K], Z: [K]}", "Z[k] = A[k+1]"), "expected an index such as"),
        (_file("{A: [K], Z: [K]}", "Z[k] = take(A[k], 3)"), "take has no operand number 3"),
        (_file("{A: [K], Z: [K]}", "Z[k]"), "expected TENSOR"),
        (_file("{A: [K], loop: [K]}", "Z[k] = A[k]"), "expected the name of a tensor"),
        ("einsum: {declaration: {}, expressions: [], shape: {}}", "cannot hold 'einsum: shape'"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(EinfuseError, match=message):
        read_teaal(text, source="f.yaml")


def test_sums_by_name_and_numbers_are_read() -> None:
    """Older files of the compiler name what they sum over."""
    text = (
        "einsum:\n  declaration: {A: [K, M], B: [K, N], T: [M, N], Z: []}\n  expressions:\n"
        "  - T[m, n] = sum(K).(A[k, m] * B[k, n])\n  - Z[] = sum(M, N).(2 * T[m, n] * T[m, n])\n"
    )
    a, b = np.arange(6.0).reshape(3, 2), np.arange(12.0).reshape(3, 4)
    found = run(read_teaal(text), {"A": a, "B": b})["Z"]
    assert found == 2 * ((a.T @ b) ** 2).sum()
    with pytest.raises(EinfuseError, match="sum over M, but what the left side lacks is M, N"):
        read_teaal(text.replace("sum(M, N)", "sum(M)"))
