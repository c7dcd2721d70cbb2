"""AccelForge's workloads, both ways. The forms are those of its own example files."""

from __future__ import annotations

import numpy as np
import pytest

from einfuse.einsum import CascadeError, EinfuseError, bind, load, parse, run
from einfuse.einsum.exchange.accelforge import read_accelforge
from einfuse.einsum.exchange.accelforge_writer import write_accelforge
from einfuse.einsum.language.printer import render_einsum

ATTENTION = """
workload:
  rank_sizes:
    {% set N_TOKENS = N_TOKENS | default(2*3) %}
    B: 1
    M: {{N_TOKENS}}
    P: {{N_TOKENS}}
    H: 2
    E: 4
    F: 2*2
  bits_per_value: {All: 8}
  persistent_tensors: weight - Intermediates
  einsums:
  - {einsum: "I[b, m, h, e] = I_in[b, m, h, e]", is_copy_operation: True}
  - einsum: "QK[b, m, p, h] = I[b, m, h, e] * K[b, M: p, h, e]"
    renames: {input: I}
  - "AV[b, m, h, f] = QK[b, m, p, h] * V[b, M: p, h, E: f]"
"""


def _workload(einsums: str, sizes: str = "{M: 4, N: 3}") -> str:
    return f"workload:\n  rank_sizes: {sizes}\n  einsums:\n{einsums}\n"


def _lines(text: str) -> list[str]:
    return [render_einsum(e) for e in read_accelforge(text).cascade.einsums]


def test_the_concise_form_is_read_with_sizes_and_bits() -> None:
    workload = read_accelforge(ATTENTION)
    assert [render_einsum(e) for e in workload.cascade.einsums] == [
        "I[b,m,h,e] = I_in[b,m,h,e]",
        "QK[b,m,p,h] = I[b,m,h,e] * K[b,p,h,e]",
        "AV[b,m,h,f] = QK[b,m,p,h] * V[b,p,h,f]",
    ]
    assert bind(workload.cascade, {}) == {"B": 1, "M": 6, "P": 6, "H": 2, "E": 4, "F": 4}
    assert workload.bits_per_value == (("All", 8),)


def test_template_variables_take_settings() -> None:
    workload = read_accelforge(ATTENTION, settings={"N_TOKENS": "7"})
    assert bind(workload.cascade, {})["M"] == 7


def test_templates_repeat_and_choose() -> None:
    text = (
        "workload:\n  rank_sizes: {M: 4}\n  einsums:\n"
        "{% for i in range(N - 1) %}  - T{{i + 1}}[m] = T{{i}}[m] * W{{i}}[m]\n{% endfor %}"
        "{% if N > 2 %}{% else %}  - Z[m] = T{{ N - 1 }}[m] * W[m]\n{% endif %}"
    )
    names = [e.name for e in read_accelforge(text, settings={"N": "3"}).cascade.einsums]
    assert names == ["T1", "T2"]
    names = [e.name for e in read_accelforge(text, settings={"N": "2"}).cascade.einsums]
    assert names == ["T1", "Z"]


def test_what_is_read_is_written_and_read_back_equal() -> None:
    cascade = read_accelforge(ATTENTION).cascade
    written = write_accelforge(cascade, bits_per_value=8)
    assert 'QK[b, m, p, h] = I[b, m, h, e] * K[b, M: p, h, e]"' in written
    assert read_accelforge(written).cascade == cascade


def test_a_layer_is_written_with_the_sizes_of_a_shape() -> None:
    shape = {"B": 2, "P": 3, "H": 2, "E": 2, "S": 5, "D": 3}
    back = read_accelforge(write_accelforge(load("layer/gemms"), shape)).cascade
    assert [e.expression for e in back.einsums] == [
        e.expression for e in load("layer/gemms").einsums
    ]
    assert bind(back, {})["T"] == 6


def test_the_verbose_form_is_a_product_with_affine_projections() -> None:
    text = _workload(
        """
  - name: Depthwise
    tensor_accesses:
    - {name: T, projection: {P0: p1 + r0, N: n}}
    - {name: W, projection: [r0, n]}
    - {name: O, projection: [p1, n], output: True}
    iteration_space_shape: [0 <= r0 < 2]
""",
        "{P0: 5, P1: 4, N: 3}",
    )
    assert _lines(text) == ["O[p1,n] = T[p1+r0,n] * W[r0,n]"]
    rng = np.random.default_rng(0)
    t, w = rng.standard_normal((5, 3)), rng.standard_normal((2, 3))
    found = run(read_accelforge(text).cascade, {"T": t, "W": w})["O"]
    np.testing.assert_allclose(found, t[:4] * w[0] + t[1:] * w[1])


def test_a_bound_that_is_no_rank_size_becomes_a_filter() -> None:
    text = """
workload:
  einsums:
  - einsum: "Y[n] = A[m, n]"
    iteration_space_shape: [1 <= m < 4, 0 <= n < 3]
"""
    cascade = read_accelforge(text).cascade
    a = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(run(cascade, {"A": a})["Y"], a[1:].sum(0))


def test_other_operators_are_read() -> None:
    text = _workload(
        """
  - name: Tropical
    tensor_accesses:
    - {name: B, projection: [m, n]}
    - {name: C, projection: [n]}
    - {name: A, projection: [m], output: True}
    map_op: add
    reduce_op: max
"""
    )
    assert _lines(text) == ["A[m] = B[m,n] + C[n] :: max(n)"]


def test_a_variable_may_run_over_a_part_of_a_rank() -> None:
    text = _workload('  - "Y[n] = A[M: n]"')
    found = run(read_accelforge(text).cascade, {"A": np.arange(4.0)})["Y"]
    np.testing.assert_array_equal(found, [0, 1, 2])


@pytest.mark.parametrize(
    ("einsums", "message"),
    [
        ('  - "Y[m] = "', "syntax|expected"),
        ('  - "Y[m]"', "expected TENSOR"),
        ('  - "Y[m] = A[m, 3 n]"', "expected 'm' or 'M: index', found '3 n'"),
        ('  - "Y[m] = A[M: m^2]"', "expected an affine index"),
        ('  - "Y[m] = A[m] $ B[m]"', "translated"),
        ("  - {name: X, tensor_accesses: 3}", "expected a list under 'tensor_accesses'"),
        ("  - {name: X, tensor_accesses: [3]}", "expected name and projection, found 3"),
        (
            "  - {name: X, tensor_accesses: [{name: A, projection: [m], density: 0.5}]}",
            "cannot hold 'tensor_accesses: density'",
        ),
        ('  - {einsum: "Y[m] = A[m]", rank_sizes: {M: 5}}', "rank M has size 4 here and 5 there"),
        ("  - {name: X, tensor_accesses: []}", "expected one output and some inputs"),
        ('  - {einsum: "Y[m] = A[m]", n_instances: 3}', "cannot hold 'einsums: n_instances'"),
        ('  - {einsum: "Y[m] = A[m]", reduce_op: xor}', "cannot hold reduce_op 'xor'"),
        ('  - {einsum: "Y[m] = A[m]", iteration_space_shape: [m]}', "expected bounds such as"),
        (
            '  - {einsum: "Y[m] = A[m]", iteration_space_shape: ["1 <= q < 3"]}',
            "bounds q, which no input has",
        ),
    ],
)
def test_a_wrong_file_is_refused(einsums: str, message: str) -> None:
    with pytest.raises(EinfuseError, match=message):
        read_accelforge(_workload(einsums), source="f.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: {% for i in x %}{% endfor %}",
            r"f\.yaml:1: cannot read the template tag \{% for i in x %\}",
        ),
        ("a: {% for i in range(2) %}", r"f\.yaml: the template lacks \{% endfor %\}"),
        ("a: {% if 1 %}", r"f\.yaml: the template lacks \{% endif %\}"),
        ("a: {% endif %}", "cannot read the template tag"),
        ("a: {{ 1 / 0 }}", "cannot read the template tag"),
        ("a: {{ 1 // 0 }}", "cannot read the template tag"),
        ("a: {{ __import__('os') }}", "cannot read the template tag"),
        ("a: {% for i in range(99999999) %}x{% endfor %}", "more than 100000 pieces"),
        ("\na: {{N}}", r"f\.yaml:2: the template needs a value: --set N="),
        (
            "a: {% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
            "more than 100000 pieces",
        ),
        ("a: {% set x = 9999999999 %}" + "{% set x = x * x %}" * 40, "cannot read the template"),
        ("a: {% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "cannot read the template tag"),
        ("a: {{ ''.__class__ }}", "cannot read the template tag"),
        ("a: {{ 'x' * 1000000000 }}", "cannot read the template tag"),
        ("workload: {einsums: [], layers: 3}", "cannot hold 'workload: layers'"),
        (_workload('  - "Y[m] = A[m]"', "{M: x}"), "expected a whole size of M, found 'x'"),
        (_workload('  - "Y[m] = A[m]"', "{M: 0}"), "expected a whole size of M, found 0"),
    ],
)
def test_a_wrong_head_is_refused(text: str, message: str) -> None:
    with pytest.raises(EinfuseError, match=message):
        read_accelforge(text, source="f.yaml")


def test_writing_needs_all_sizes_and_refuses_by_name() -> None:
    with pytest.raises(EinfuseError, match="rank"):
        write_accelforge(load("layer/gemms"))
    with pytest.raises(CascadeError, match=r"AccelForge cannot express the position m as a value"):
        write_accelforge(parse("rank M = 3\ninput A[M]\nY[m] = m * A[m]"))
    with pytest.raises(CascadeError, match=r"AccelForge cannot express several reductions at once"):
        write_accelforge(parse("rank M = 3, N = 2\ninput A[M,N]\nY[] = A[m,n] :: +(n); max(m)"))
    with pytest.raises(CascadeError, match=r"AccelForge cannot express the reduction \*\(n\)"):
        write_accelforge(parse("rank M = 3, N = 2\ninput A[M,N]\nY[m] = A[m,n] :: *(n)"))
    with pytest.raises(CascadeError, match=r"AccelForge cannot express the merge '@ inter'"):
        write_accelforge(parse("rank M = 3\ninput A[M], B[M]\nY[m] = A[m] + B[m] @ inter"))
    with pytest.raises(CascadeError, match=r"AccelForge cannot express the scalar Y\[\]"):
        write_accelforge(parse("rank M = 3\ninput A[M]\nY[] = A[m]"))
    with pytest.raises(EinfuseError, match="at least 1 bit"):
        write_accelforge(parse("rank M = 3\ninput A[M]\nY[m] = A[m]"), bits_per_value=0)


def test_copies_and_roles_and_sizes_beside_an_einsum_are_read() -> None:
    """Forms of the tool's own transformer and convolution workloads."""
    text = """
workload:
  rank_sizes: {B: 2, M: 4, P: 4}
  bits_per_value: {All: 8}
  einsums:
  - einsum: "X[b, m, d] = copy(X_in[b, m, d])"
    rank_sizes: {D: 3}
  - einsum: S(output)[b, m, p] = X(input)[b, m, d] * X(weight)[b, M=p, d]
    renames: {input: X}
  - name: Mix
    tensor_accesses:
    - {name: S, projection: [b, m, p], bits_per_value: 16}
    - {name: X, projection: {B: b, M: p, D: d}}
    - {name: Y, projection: [b, m, d], output: True}
"""
    workload = read_accelforge(text)
    assert list(map(render_einsum, workload.cascade.einsums)) == [
        "X[b,m,d] = X_in[b,m,d]",
        "S[b,m,p] = X[b,m,d] * X[b,p,d]",
        "Y[b,m,d] = S[b,m,p] * X[b,p,d]",
    ]
    assert dict(workload.bits_per_value) == {"All": 8, "S": 16}
    x = np.random.default_rng(0).standard_normal((2, 4, 3))
    found = run(workload.cascade, {"X_in": x})["Y"]
    np.testing.assert_allclose(found, (x @ x.transpose(0, 2, 1)) @ x, rtol=1e-12)


DENSE = ["3-pass", "3-pass-deferred", "elu-similarity", "identity-similarity", "linear"]


@pytest.mark.parametrize("name", DENSE)
def test_dense_attention_is_written_and_read_back_equal(name: str) -> None:
    """AccelForge's own workloads call a softmax one operation; here each step of it is kept."""
    cascade = load(f"attention/{name}")
    sizes = {rank: size for rank, size in zip(cascade.rank_names, (3, 2, 4, 5, 6), strict=False)}
    text = write_accelforge(cascade, sizes)
    back = read_accelforge(text).cascade
    assert [(e.output, e.expression) for e in back.einsums] == [
        (e.output, e.expression) for e in cascade.einsums
    ]
    rng = np.random.default_rng(1)
    inputs = {
        t.name: rng.standard_normal([sizes[r] for r in t.ranks]) for t in cascade.input_tensors
    }
    expected, found = run(cascade, inputs, sizes), run(back, inputs)
    for output, value in expected.items():
        np.testing.assert_array_equal(found[output], value)
