"""Children of the devnet: their lines, their logs, their end, and that nothing of them is left."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from commonweight.devnet.child import MAX_LINE_BYTES, Child
from commonweight.devnet.processes import family, resident_bytes, start_time, wait_for_end
from commonweight.errors import StateError

pytestmark = pytest.mark.asyncio

GRANDCHILD = """
import subprocess, sys
process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(process.pid, flush=True)
"""


async def start(folder: Path, script: str, *arguments: str) -> Child:
    return await Child.start("child", [sys.executable, "-c", script, *arguments], folder)


async def read(child: Child) -> list[bytes]:
    async with asyncio.timeout(30):
        return [line async for line in child.lines()]


async def test_lines_arrive_in_order_and_are_logged(tmp_path: Path) -> None:
    child = await start(tmp_path, "import sys; print('one'); print('two'); sys.stderr.write('oops\\n'); sys.exit(3)")
    assert await read(child) == [b"one", b"two"]
    assert await child.wait() == 3
    assert (tmp_path / "child.jsonl").read_text() == "one\ntwo\n"
    assert child.last_errors() == "oops"


async def test_a_line_without_end_is_no_event_and_doesnt_hold_memory(tmp_path: Path) -> None:
    child = await start(tmp_path, f"print('x' * {3 * MAX_LINE_BYTES}); print('after')")
    lines = await read(child)
    assert lines[-1] == b"after"
    assert (tmp_path / "child.jsonl").stat().st_size > 3 * MAX_LINE_BYTES


async def test_a_polite_child_ends_when_asked(tmp_path: Path) -> None:
    script = "import signal, sys; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True)"
    script += "\nwhile True: signal.sigtimedwait([], 0.1)"  # a `pause` might begin after the signal
    child = await start(tmp_path, script)
    assert await anext(child.lines()) == b"up"
    assert await child.stop(30.0) == 7
    assert child.ended


async def test_a_deaf_child_is_killed_after_the_deadline(tmp_path: Path) -> None:
    script = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.pause(); signal.pause()"
    child = await start(tmp_path, script)
    assert await anext(child.lines()) == b"up"
    assert await child.stop(0.1) == -signal.SIGKILL


async def test_what_a_dead_child_leaves_behind_is_killed(tmp_path: Path) -> None:
    """The grandchild holds the pipe open: the lines end only because it is killed with the group."""
    child = await start(tmp_path, GRANDCHILD)
    (line,) = await read(child)
    assert await child.wait() == 0
    assert await asyncio.to_thread(wait_for_end, int(line), 10.0)


async def test_a_command_that_isnt_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="nowhere can't be started"):
        await Child.start("nowhere", [str(tmp_path / "missing")], tmp_path)


async def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from commonweight.devnet.child import Child
async def main():
    child = await Child.start("child", [sys.executable, "-c", "import time; time.sleep(600)"], Path({str(tmp_path)!r}))
    print(child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert parent.stdout is not None
    pid = int(await asyncio.wait_for(parent.stdout.readline(), 30))
    assert start_time(pid) is not None
    parent.kill()
    await parent.wait()
    assert await asyncio.to_thread(wait_for_end, pid, 10.0)


async def test_a_family_and_its_memory(tmp_path: Path) -> None:
    child = await start(tmp_path, GRANDCHILD + "process.wait()")
    grandchild = int(await anext(child.lines()))
    members = family(os.getpid())
    assert {os.getpid(), child.pid, grandchild} <= set(members)
    assert resident_bytes(os.getpid()) > resident_bytes(child.pid) > resident_bytes(grandchild) > 0
    await child.stop(0.5)
    assert await asyncio.to_thread(wait_for_end, grandchild, 10.0)
    assert start_time(grandchild) is None
