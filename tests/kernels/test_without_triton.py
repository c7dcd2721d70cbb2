"""Without Triton, what needs none of it works: PyTorch's own kernels are measured."""

import subprocess
import sys


def test_measuring_imports_no_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import einfuse.kernels.measured.measuring, einfuse.kernels.measured.calibration\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
