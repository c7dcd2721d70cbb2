"""The launches that stand for every shipped configuration; built here, compiled elsewhere."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from einfuse.kernels.calls.launch import Launch  # noqa: E402
from einfuse.kernels.calls.registry import Kernel, find_kernel, kernels  # noqa: E402
from einfuse.kernels.compiled.examples import list_examples  # noqa: E402

CASES = [
    (kernel, architecture)
    for kernel in kernels()
    for architecture in kernel.tuned
    if architecture != "interpreter"
]


@pytest.mark.parametrize(
    ("kernel", "architecture"), CASES, ids=[f"{kernel.name}-{a}" for kernel, a in CASES]
)
def test_every_shipped_row_is_used_by_some_example(kernel: Kernel, architecture: str) -> None:
    launches = [example.launch for example in list_examples(kernel, architecture)]
    for row in kernel.configurations:
        if row.architecture == architecture:
            assert any(_is_of(launch, dict(row.tiles), row.options) for launch in launches), row


def _is_of(launch: Launch, tiles: dict[str, int], options: dict[str, int]) -> bool:
    same = (launch.arguments.get(name) == size for name, size in tiles.items())
    return launch.options == options and all(same)


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_examples_have_labels_of_their_own_and_no_data(kernel: Kernel) -> None:
    examples = list(list_examples(kernel, "sm_90"))
    labels = [example.label for example in examples]
    assert len(set(labels)) == len(labels)
    tensors = [
        argument
        for example in examples
        for argument in example.launch.arguments.values()
        if isinstance(argument, torch.Tensor)
    ]
    assert all(tensor.is_meta for tensor in tensors)


def test_the_arguments_of_a_launch_are_the_parameters_of_its_function() -> None:
    for name in ("one-pass", "one-pass-hopper", "two-pass", "three-pass", "row-resident"):
        for example in list_examples(find_kernel(name), "sm_90"):
            wanted = set(example.launch.function.arg_names)
            assert set(example.launch.arguments) == wanted, example.label


def test_a_launch_with_an_empty_grid_launches_nothing() -> None:
    def function(**arguments: object) -> None:
        raise AssertionError("launched")

    Launch(function, (4, 0), {}, {}).run()


@pytest.mark.parametrize("kernel", [k.name for k in kernels() if "sm_90" in k.tuned])
def test_a_launch_has_an_argument_for_every_parameter_and_no_other(kernel: str) -> None:
    for example in list_examples(find_kernel(kernel), "sm_90"):
        assert set(example.launch.arguments) == set(example.launch.function.arg_names)
