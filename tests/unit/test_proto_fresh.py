"""The committed stubs are those of the .proto files."""

import subprocess
import sys
from pathlib import Path


def test_the_generated_stubs_are_fresh():
    tool = Path(__file__).parents[2] / "tools" / "build_proto.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
