"""How the property tests run.

By default every run tries the same examples. `COMMONWEIGHT_DEEP_TESTS=N` tries N times as many, other ones in each
run; the seed is printed at the end and `--hypothesis-seed` repeats it.
"""

import os
import secrets

import pytest
from hypothesis import HealthCheck, settings

# So that what fails in a helper says what it compared.
pytest.register_assert_rewrite("tests.adversaries", "tests.integration", "tests.property", "tests.unit")

DEEP = int(os.environ.get("COMMONWEIGHT_DEEP_TESTS", "0"))
EXAMPLES = 60

settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
)
if DEEP:
    settings.register_profile(
        "deep",
        derandomize=False,
        deadline=None,
        database=None,
        max_examples=EXAMPLES * DEEP,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("deep" if DEEP else "deterministic")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed here, so that it can be printed."""
    if DEEP and not config.getoption("hypothesis_seed", None):
        config.option.hypothesis_seed = str(secrets.randbits(32))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what repeats this run; a header would be hidden by -q."""
    if DEEP:
        seed = config.getoption("hypothesis_seed")
        terminalreporter.write_line(f"repeat with COMMONWEIGHT_DEEP_TESTS={DEEP} pytest --hypothesis-seed={seed}")
