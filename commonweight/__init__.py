"""Commonweight: train one model over many machines, own it by the work that was verified."""

import os

__version__ = "0.1.0"

# gRPC writes a line to stderr for each handshake that fails, as one does when a neighbour's certificate isn't admitted
# yet. Our own events say what matters. It reads this once, when it is first imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
