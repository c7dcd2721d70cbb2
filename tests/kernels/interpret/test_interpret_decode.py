"""Decoding kernels against the plain formula on gathered caches, in Triton's interpreter."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.decoding.cache import CacheProblem, attend_cache  # noqa: E402
from einfuse.kernels.decoding.split_kv import decode_attention  # noqa: E402
from einfuse.kernels.errors import KernelError  # noqa: E402
from einfuse.kernels.measured.gate import judge  # noqa: E402

KERNELS = ("split-kv-decode", "stream-k-decode")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def draw(dtype, queries=1, lengths=(100, 0, 37), heads=6, key_heads=2, capacity=110):
    torch.manual_seed(0)
    batch = len(lengths)
    q = torch.randn(batch, heads, queries, 24).to(dtype)
    k, v = (torch.randn(batch, key_heads, capacity, 24).to(dtype) for _ in range(2))
    return q, k, v, torch.tensor(lengths, dtype=torch.int32)


def paginate(k, v, slots, seed=0):
    """The same cache in pages [pages, slots, G, E], shuffled, and its table."""
    batch, _, capacity, _ = k.shape
    per_sequence = -(-capacity // slots)
    order = torch.randperm(batch * per_sequence, generator=torch.Generator().manual_seed(seed))
    table = order.view(batch, per_sequence).to(torch.int32)
    pages = []
    for cache in (k, v):
        padded = torch.full((batch, per_sequence * slots, *cache.shape[1::2]), float("nan"))
        padded[:, :capacity] = cache.transpose(1, 2)
        paged = torch.empty(batch * per_sequence, slots, *cache.shape[1::2], dtype=k.dtype)
        paged[order] = padded.view(-1, slots, *cache.shape[1::2]).to(k.dtype)
        pages.append(paged)
    return (*pages, table)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("queries", [1, 3])
def test_a_decoding_step_errs_at_most_twice_as_much_as_the_plain_formula(kernel, dtype, queries):
    q, k, v, lengths = draw(dtype, queries)
    out, lse = decode_attention(q, k, v, lengths=lengths, splits=3, kernel=kernel)
    problem = CacheProblem(q, k, v, 24**-0.5, True, lengths)
    exact, plain = attend_cache(problem, torch.float64), attend_cache(problem, dtype)
    verdict = judge(out, exact[0], plain[0])
    assert verdict.passed, str(verdict)
    assert judge(lse, exact[1], exact[1].float()).error < 1e-3
    assert (out[1] == 0).all() and (lse[1] == float("-inf")).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("slots", [16, 24, 64])
def test_a_paged_cache_equals_a_contiguous_one(kernel, slots):
    q, k, v, lengths = draw(torch.float16)
    dense = decode_attention(q, k, v, lengths=lengths, splits=2, kernel=kernel)
    k_pages, v_pages, table = paginate(k, v, slots)
    paged = decode_attention(
        q, k_pages, v_pages, lengths=lengths, page_table=table, splits=2, kernel=kernel
    )
    assert torch.equal(dense[0], paged[0])
    assert torch.equal(dense[1], paged[1])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("splits", [1, 2, 5, 40])
def test_the_number_of_splits_changes_rounding_alone(kernel, splits):
    q, k, v, lengths = draw(torch.float32, lengths=(110, 1, 64))
    out, lse = decode_attention(q, k, v, lengths=lengths, splits=splits, kernel=kernel)
    exact = attend_cache(CacheProblem(q, k, v, 24**-0.5, True, lengths), torch.float64)
    assert (out - exact[0]).abs().max() < 1e-5
    assert (lse - exact[1]).abs().max() < 1e-5


def test_with_fixed_splits_a_sequence_does_not_depend_on_the_batch():
    q, k, v, _ = draw(torch.float16)
    together, _ = decode_attention(q, k, v, splits=3)
    alone, _ = decode_attention(q[1:2], k[1:2], v[1:2], splits=3)
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("kernel", KERNELS)
def test_keys_past_the_length_are_never_used(kernel):
    q, k, v, lengths = draw(torch.float32)
    for sequence, length in enumerate(lengths.tolist()):
        k[sequence, :, length:] = float("nan")
        v[sequence, :, length:] = float("nan")
    out, lse = decode_attention(q, k, v, lengths=lengths, kernel=kernel)
    assert torch.isfinite(out).all()
    assert not torch.isnan(lse).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_more_rows_than_a_tile_are_split(kernel):
    q, k, v, _ = draw(torch.float32, queries=5, lengths=(50,), heads=16, key_heads=2, capacity=50)
    out, _ = decode_attention(q, k, v, kernel=kernel)
    exact = attend_cache(CacheProblem(q, k, v, 24**-0.5), torch.float64)[0]
    assert (out - exact).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
def test_caches_are_taken_by_their_strides(kernel):
    q, k, v, _ = draw(torch.float32)
    rows_first = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    assert torch.equal(
        decode_attention(q, k, v, kernel=kernel)[0], decode_attention(*rows_first, kernel=kernel)[0]
    )


def test_decode_is_a_well_formed_operator():
    q, k, v, lengths = draw(torch.float32, heads=2, key_heads=1, lengths=(30, 0), capacity=40)
    arguments = (q, k, v, lengths, None, True, 0.2, 2, "split-kv-decode", True)
    torch.library.opcheck(torch.ops.einfuse.decode, arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lengths": [111, 1, 1]}, "lengths: expected 0 to 110 keys.*found 111"),
        ({"lengths": [-1, 1, 1]}, "lengths: .*found -1"),
        ({"lengths": [1, 1]}, r"lengths: expected int32 \[3\]"),
        ({"heads": 5}, "k: expected a number of heads that divides the 5 of q, found 2"),
        ({"scale": 0.0}, "scale: expected a positive finite number, found 0.0"),
        ({"kernel": "nothing"}, "there is no 'nothing'"),
    ],
)
def test_bad_calls_name_the_argument(change, words):
    q, k, v, lengths = draw(torch.float32, heads=change.get("heads", 6))
    lengths = torch.tensor(change.get("lengths", lengths.tolist()), dtype=torch.int32)
    options = {name: change[name] for name in ("scale", "kernel") if name in change}
    with pytest.raises(KernelError, match=words):
        decode_attention(q, k, v, lengths=lengths, **options)


@pytest.mark.parametrize("page", [-1, 12])
def test_pages_that_do_not_exist_are_refused_where_they_are_used(page):
    q, k, v, lengths = draw(torch.float32)
    k_pages, v_pages, table = paginate(k, v, 32)
    table[1] = page  # sequence 1 has no keys: its pages are not used
    decode_attention(q, k_pages, v_pages, lengths=lengths, page_table=table)
    table[2, 1] = page
    with pytest.raises(KernelError, match=f"page_table: expected pages from 0 to 11, found {page}"):
        decode_attention(q, k_pages, v_pages, lengths=lengths, page_table=table)
