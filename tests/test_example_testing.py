"""The example of docs/testing.md, run as its readers run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs/examples/testing/test_degraded.py"


@pytest.mark.faults
@pytest.mark.redis
def test_the_example_of_a_degraded_service_passes(tmp_path):
    """Readers copy it. What fails for them should have failed here."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "jmcache.testing.pytest_plugin",
         "-p", "no:cacheprovider", "-c", os.devnull, EXAMPLE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
