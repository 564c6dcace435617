"""The lower never imports the upper, and the printed error tree is the real one."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

from commonweight import errors
from commonweight.errors import CommonweightError

ROOT = Path(__file__).resolve().parents[2]


def test_imports_keep_to_the_layers() -> None:
    """Every contract of [tool.importlinter]; its output names the import that breaks one."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", done.stdout)


def printed_tree() -> dict[str, tuple[str, str | None, int | None]]:
    """Of each class in the docstring: its parent, its code and its exit code, where they are printed."""
    found: dict[str, tuple[str, str | None, int | None]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)([A-Z]\w+)(.*)$", line)
        if match is None:
            continue
        depth, name, rest = len(match[1]) // 4, match[2], match[3]
        code, exit_code = re.search(r"\b[A-Z]+(_[A-Z]+)+\b", rest), re.search(r"exit (\d)", rest)
        del above[depth:]
        found[name] = (above[-1] if above else "Exception", code and code[0], exit_code and int(exit_code[1]))  # type: ignore[assignment]
        above.append(name)
    return found


def real_classes() -> dict[str, type[CommonweightError]]:
    return {
        name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, CommonweightError)
    }


def test_the_printed_error_tree_is_the_real_one() -> None:
    printed, real = printed_tree(), real_classes()
    assert list(printed) == sorted(printed, key=lambda name: inspect.getsourcelines(real[name])[1])
    assert printed.keys() == real.keys()
    for name, (parent, code, exit_code) in printed.items():
        kind = real[name]
        assert kind.__bases__[0].__name__ == parent
        inherited = kind.__bases__[0].__dict__.get("exit_code", 1)
        assert kind.exit_code == (inherited if exit_code is None else exit_code)
        if code is not None:
            assert kind.code == code
        else:
            assert kind.__subclasses__(), f"{name} can be raised, and its code isn't printed"


def test_codes_are_distinct_and_shown() -> None:
    real = real_classes()
    codes = [kind.code for kind in real.values()]
    assert len(set(codes)) == len(codes)
    for kind in real.values():
        assert kind.__doc__
        assert str(kind("what happened.")) == f"[{kind.code}] what happened."


def test_input_errors_are_value_errors() -> None:
    assert issubclass(errors.InputError, ValueError)
    assert "(also ValueError)" in (errors.__doc__ or "")


def test_listing_commands_never_imports_libp2p() -> None:
    code = "import sys, commonweight.cli.main, node.control, coordinator.cli; print('libp2p' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
