"""The machine describes itself, or says what it lacks."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="a device is described through torch")

from einfuse.kernels.errors import KernelError  # noqa: E402
from einfuse.kernels.measured.device import find_device, read_sm_clock_mhz  # noqa: E402


def test_a_processor_has_a_name_cores_and_software() -> None:
    device = find_device("cpu")
    assert device.name
    assert device.units >= 1
    assert device.threads == torch.get_num_threads()
    assert device.torch == torch.__version__
    clock = read_sm_clock_mhz(device)
    assert clock is None or 100 < clock < 10000


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said_with_what_to_do() -> None:
    with pytest.raises(KernelError, match=r"sees no GPU on this machine.*use --device cpu"):
        find_device("cuda")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(KernelError, match="expected cpu or cuda, found 'tpu'"):
        find_device("tpu")
