"""The registry of kernels, read without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from einfuse.einsum.library.cascades import load
from einfuse.kernels.calls.registry import Kernel, Traits, choose_kernel, find_kernel, kernels
from einfuse.kernels.errors import KernelError


def traits(**changes: object) -> Traits:
    usual = {
        "architecture": "sm_90", "dtype": "float16", "heads": 8, "key_heads": 8, "queries": 1024,
        "keys": 1024, "head_size": 128, "value_size": 128, "features": frozenset(),
    }  # fmt: skip
    return Traits(**{**usual, **changes})  # type: ignore[arg-type]


def test_every_kernel_has_a_name_of_its_own_and_a_cascade() -> None:
    names = [kernel.name for kernel in kernels()]
    assert len(set(names)) == len(names) > 1
    assert all(kernel.cascade.count("/") == 1 for kernel in kernels())


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_the_cascade_of_a_kernel_is_in_the_library(kernel: Kernel) -> None:
    assert load(kernel.cascade).name == kernel.cascade


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_the_data_of_a_kernel_are_complete(kernel: Kernel) -> None:
    assert kernel.summary and len(kernel.summary) <= 100
    assert kernel.requires <= kernel.features
    assert all(least <= most for _, least, most in kernel.limits)
    assert all(row.source and row.tiles for row in kernel.configurations)
    assert set(kernel.tuned) <= set(kernel.architectures)


def test_kernels_are_listed_without_torch_or_triton() -> None:
    code = (
        "import sys, einfuse.kernels as ek; names = [k.name for k in ek.kernels()];"
        "assert 'one-pass' in names; assert not {'torch', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_a_name_that_needs_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import einfuse.kernels as ek\n"
        "try: ek.attention\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "needs torch: pip install 'einfuse[gpu]'" in done.stdout


def test_an_unknown_kernel_is_answered_with_those_there_are() -> None:
    with pytest.raises(KernelError, match=r"no 'two-pas'; there are .*one-pass"):
        find_kernel("two-pas")


def test_the_plain_kernel_takes_what_no_other_does() -> None:
    call = traits(dtype="float64", features=frozenset({"softcap", "varlen", "backward"}))
    assert choose_kernel(call).name == "plain"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "sm_60"}, "runs on interpreter, .*not on sm_60"),
        ({"dtype": "float64"}, "takes float16, bfloat16, float32, not float64"),
        ({"features": frozenset({"sigmoid", "varlen"})}, "does not know sigmoid, varlen"),
        ({"head_size": 512}, "takes head_size from 1 to 256, not 512"),
    ],
)
def test_a_named_kernel_says_why_it_refuses(change: dict[str, object], words: str) -> None:
    with pytest.raises(KernelError, match=f"kernel 'one-pass' {words}"):
        choose_kernel(traits(**change), "one-pass")


def test_an_architecture_without_rows_takes_those_of_the_newest_before_it() -> None:
    kernel = find_kernel("one-pass")
    sizes = {"head_size": 64, "itemsize": 2}
    assert kernel.configuration("forward", "sm_100", **sizes).architecture == "sm_90"
    assert kernel.configuration("forward", "sm_86", **sizes).architecture == "sm_80"


def test_small_shared_memory_takes_the_rows_of_the_architecture_that_has_as_little() -> None:
    row = find_kernel("one-pass").configuration("forward", "sm_120", head_size=64, itemsize=2)
    assert row.architecture == "sm_80"


def test_a_launch_without_any_row_says_where_rows_are() -> None:
    with pytest.raises(
        KernelError, match=r"no configuration of 'forward' for sm_75 .*head_size=64"
    ):
        find_kernel("one-pass").configuration("forward", "sm_75", head_size=64)
