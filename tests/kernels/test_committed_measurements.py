"""The measurements that are shipped: readable, whole, and none from a GPU unless it says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from einfuse.kernels.measured.measurement import read_measurements

FILES = sorted((Path(__file__).parents[2] / "kernels" / "data").glob("measurements-*.csv"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_measurements_carry_their_provenance(path: Path) -> None:
    rows = read_measurements(path)
    assert len({row.key for row in rows}) == len(rows) > 0
    for row in rows:
        assert row.gpu and row.torch and row.date
        assert len(row.git_sha) == 40  # of a commit, with no file changed
        assert row.error_ratio is not None and row.error_ratio <= 1
        assert row.min_ms is not None and row.min_ms <= row.value
