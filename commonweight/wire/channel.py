"""gRPC channels and servers with one set of options for the whole network.

A silent peer (frozen, unplugged) is noticed KEEPALIVE_MS + the ping timeout after its last byte, in both directions
and also where no call is running. A connection that fails is tried again after at most a second.

The ping timeout is strict: a ping's answer waits behind whatever the link has queued. grpcio 1.85 has a milder rule,
that any byte counts as an answer, but never starts its timer (writing.cc sets it only where it is set already), so
`grpc.keepalive_timeout_ms` alone leaves a frozen peer unnoticed for a minute. Hence two timeouts: one for control,
where little is ever queued, and one for pipes, where several MiB may take seconds on a slow link.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

from commonweight.errors import ConfigError
from commonweight.wire.tls import TARGET_NAME, Certificate, client_credentials

PIPE_PART_BYTES = 1 << 20
"""Tensor bytes in one pipe frame, at most."""
PIPE_FRAME_BYTES = PIPE_PART_BYTES + (64 << 10)
"""A whole pipe frame: its part, and slack for the headers."""
CONTROL_MESSAGE_BYTES = 4 << 20
"""Any other message: the largest is a report of 8,192 microbatches (1.8 MB)."""
KEEPALIVE_MS = 2_000
CONTROL_PING_TIMEOUT_MS = 2_500
PIPE_PING_TIMEOUT_MS = 10_000
"""At 8 Mbit/s, 10 MB are sent in it; 8 MiB in flight broke a healthy link at 2,500."""
CONNECT_TIMEOUT_MS = 5_000
MAX_BACKOFF_MS = 1_000

Servicer = tuple[Callable[[Any, Any], None], Any]
"""A generated add_…Servicer_to_server function, and the servicer."""

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


def open_channel(
    address: str,
    mine: Certificate,
    peer_der: bytes,
    *,
    max_message_bytes: int = CONTROL_MESSAGE_BYTES,
    ping_timeout_ms: int = CONTROL_PING_TIMEOUT_MS,
) -> grpc.aio.Channel:
    """A channel to the holder of the certificate `peer_der` at "host:port"; connects when first used.

    Raises ConfigError for an address that is none and IdentityMismatch for a certificate that isn't a node's.
    A peer that turns out to be another answers no call (UNAVAILABLE), and so does a peer that doesn't admit
    `mine`.
    """
    split_address(address)
    options = [
        *_shared_options(max_message_bytes, ping_timeout_ms),
        ("grpc.ssl_target_name_override", TARGET_NAME),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.use_local_subchannel_pool", 1),  # a new channel doesn't wait out an old one's backoff
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", MAX_BACKOFF_MS),
        # In spite of its name: how long an attempt may take.
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ]
    return grpc.aio.secure_channel(address, client_credentials(mine, peer_der), options=options)


async def serve(
    servicers: Iterable[Servicer],
    listen: str,
    credentials: grpc.ServerCredentials,
    *,
    max_message_bytes: int = CONTROL_MESSAGE_BYTES,
    ping_timeout_ms: int = CONTROL_PING_TIMEOUT_MS,
) -> tuple[grpc.aio.Server, int]:
    """A started server of `servicers` and of the standard health service, and the port it listens on.

    `listen` is "host:port"; port 0 takes a free one. Raises ConfigError where the address is none or is
    taken.
    """
    split_address(listen)
    options = [
        *_shared_options(max_message_bytes, ping_timeout_ms),
        ("grpc.so_reuseport", 0),  # otherwise a second process binds the same port and gets half of the calls
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 4),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_concurrent_streams", 128),
    ]
    server = grpc.aio.server(options=options)
    for add, servicer in servicers:
        add(servicer, server)
    health = health_aio.HealthServicer()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        await server.stop(None)
        raise ConfigError(
            f"Can't listen on {listen}: the port is taken or the address isn't this machine's. Free it, "
            "choose another, or give port 0 for any free one."
        ) from error
    await server.start()
    return server, port


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port"; an IPv6 host is in brackets, which the result leaves out. Port 0 is
    allowed.

    Raises ConfigError that shows what was given.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535):
        raise ConfigError(f"{address!r} is not host:port, with a port from 0 to 65535.")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ConfigError(f"{address!r} has no IPv6 address in its brackets: {error}.") from error
    elif ":" in host:
        raise ConfigError(f"{address!r} is ambiguous: write an IPv6 address in brackets, [::1]:50051.")
    elif len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise ConfigError(f"{address!r} has no host name or IP address before its port.")
    return host, int(port)


def check_advertised(listen: str, advertise: str | None) -> str | None:
    """`advertise`, once it is clear that others can reach who listens on `listen` by it, or by the host in `listen`.

    Raises ConfigError for an address that is none, and where nothing says which of this machine's addresses it is.
    """
    host, _ = split_address(listen)
    if advertise is not None:
        split_address(join_address(advertise, 0))
    elif host in ("0.0.0.0", "::"):  # noqa: S104 - refused, not bound
        raise ConfigError(f"{listen} listens on all addresses: say with --advertise by which host others reach it.")
    return advertise


def split_advertised(advertise: str) -> tuple[str, int | None]:
    """Host and port of "host:port", or of "host" alone, which has no port of its own: None.

    Raises ConfigError that shows what was given.
    """
    if advertise.count(":") == 1 or advertise.startswith("["):
        host, port = split_address(advertise)
        if port == 0:
            raise ConfigError(f"{advertise!r} can't be reached: port 0 is none. Give the port that is forwarded.")
        return host, port
    split_address(join_address(advertise, 0))
    return advertise, None


def advertised_address(listen: str, advertise: str | None, port: int) -> str:
    """The host:port that others are told of who listens on `port` of the host in `listen`.

    `advertise`: host, or host:port, by which they reach it; None: as it listens.
    """
    host, forwarded = (split_address(listen)[0], None) if advertise is None else split_advertised(advertise)
    return join_address(host, port if forwarded is None else forwarded)


def join_address(host: str, port: int) -> str:
    """The reverse of split_address: "host:port", IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def local_address(listen: str, port: int) -> str:
    """Where this machine reaches a service that listens on `port` of the host in `listen`."""
    host, _ = split_address(listen)
    try:
        if ipaddress.ip_address(host).is_unspecified:
            host = "127.0.0.1"
    except ValueError:
        pass  # a name
    return join_address(host, port)


def _shared_options(max_message_bytes: int, ping_timeout_ms: int) -> list[tuple[str, int]]:
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", ping_timeout_ms),
        ("grpc.http2.ping_timeout_ms", ping_timeout_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
