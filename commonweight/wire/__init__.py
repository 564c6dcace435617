"""What travels between processes: messages, tensors, TLS, pipes."""

PROTOCOL_VERSION = 9
"""Raised with every change that an older node or coordinator would misunderstand."""
