"""A Python that has hivemind, which is no dependency of ours: given, or in a virtual environment made for it."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from commonweight.errors import ConfigError

HIVEMIND = "1.1.12"
NEEDED = ("eth-hash[pysha3]", "safetensors", "tokenizers")
"""What our model's code imports, beside what hivemind itself needs."""

_ASK = """
import json
from importlib.metadata import version
import hivemind, torch, eth_hash, safetensors, tokenizers
print(json.dumps({name: version(name) for name in ("hivemind", "torch", "protobuf", "numpy")}))
"""


def make_hivemind_python(folder: Path) -> Path:
    """The Python of a virtual environment in `folder` with hivemind and our torch; made where there is none (1.3 GB).

    Raises ConfigError where it can't be made.
    """
    python = folder / "bin" / "python"
    if python.exists():
        return python
    torch = version("torch").partition("+")[0]
    # torch first: what would pull it in later might take a build for CUDA.
    commands = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", f"torch=={torch}"],
        [str(python), "-m", "pip", "install", "--quiet", f"hivemind=={HIVEMIND}", *NEEDED],
    )
    for command in commands:
        if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
            raise ConfigError(
                f"{' '.join(command)} failed, so there is no hivemind in {folder}. Its message is above; delete the "
                "folder before you try again, or give a Python that has hivemind with --hivemind-python."
            )
    return python


def ask_versions(python: Path) -> dict[str, str]:
    """What this Python has. Raises ConfigError where it can't run hivemind with our model, or has another torch."""
    try:
        ran = subprocess.run(
            [str(python), "-c", _ASK], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
    except OSError as error:
        raise ConfigError(
            f"{python} can't be run: {error.strerror}. Give the path of a Python with hivemind."
        ) from error
    if ran.returncode:
        raise ConfigError(
            f"{python} can't run hivemind: {ran.stderr.strip()[-300:]} Install hivemind=={HIVEMIND} and "
            f"{', '.join(NEEDED)} there, or let --hivemind-venv FOLDER make one."
        )
    found: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    ours = version("torch").partition("+")[0]
    if found["torch"].partition("+")[0] != ours:
        raise ConfigError(
            f"{python} has torch {found['torch']}, and this is {ours}: a comparison would be of both. "
            f"Install torch=={ours} there."
        )
    return found
