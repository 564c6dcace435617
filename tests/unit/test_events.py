"""What a process writes of its events."""

import os
import socket
import subprocess
import sys

from commonweight.events import parse_event

EMITS = """
from commonweight.events import emit, log_to_stdout
log_to_stdout()
emit("test.first", text="one")
emit("test.second")
"""


def test_a_line_is_written_at_once_with_its_end_so_that_processes_can_share_a_pipe() -> None:
    """Of a datagram socket each write is one message."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.settimeout(60.0)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        subprocess.run([sys.executable, "-c", EMITS], stdout=theirs, env=environment, timeout=60, check=True)
        for name in ("test.first", "test.second"):
            line = ours.recv(4096)
            assert line.endswith(b"\n")
            event = parse_event(line)
            assert event is not None
            assert event.name == name
