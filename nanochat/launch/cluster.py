"""How many processes on how many machines, and where they meet. Starts nothing."""

import contextlib
import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

from nanochat.errors import DataError, UsageError

EXAMPLE_ENDPOINT = "NODE0:29500"
SIOCGIFADDR = 0x8915  # linux/sockios.h


@dataclass(frozen=True)
class Cluster:
    """How many processes, where. gpus: processes of this node, one a device. rdzv_endpoint: HOST:PORT of node 0."""

    gpus: int = 1
    nodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str = ""
    max_restarts: int = 0

    @property
    def world_size(self) -> int:
        return self.gpus * self.nodes

    @property
    def is_alone(self) -> bool:
        """One process that nobody starts again: no torchrun."""
        return self.world_size == 1 and self.max_restarts == 0

    def options(self) -> list[str]:
        """The options that say the same again, for hints.

        >>> Cluster(8, 2, 1, "node0:29500").options()
        ['--gpus', '8', '--nodes', '2', '--node-rank', '1', '--rdzv-endpoint', 'node0:29500']
        """
        words = ["--gpus", str(self.gpus)] if self.gpus > 1 else []
        if self.nodes > 1:
            words += ["--nodes", str(self.nodes), "--node-rank", str(self.node_rank)]
            words += ["--rdzv-endpoint", self.rdzv_endpoint or EXAMPLE_ENDPOINT]
        return words + (["--max-restarts", str(self.max_restarts)] if self.max_restarts else [])

    def check(self) -> "Cluster":
        """Raise UsageError where the numbers do not fit each other; returns itself."""
        if self.gpus < 1:
            raise UsageError(f"GPUs = {self.gpus} is less than 1", "--gpus 1")
        if self.nodes < 1:
            raise UsageError(f"nodes = {self.nodes} is less than 1", "--nodes 1")
        if self.max_restarts < 0:
            raise UsageError(f"--max-restarts {self.max_restarts} is less than 0", "--max-restarts 0")
        if not 0 <= self.node_rank < self.nodes:
            raise UsageError(f"--node-rank {self.node_rank} is not in 0 to {self.nodes - 1}", "--node-rank 0")
        if self.rdzv_endpoint:
            split_endpoint(self.rdzv_endpoint)
        return self

    def check_meeting(self) -> None:
        """Raise UsageError where several nodes are to start and do not know where to meet."""
        if self.nodes > 1 and not self.rdzv_endpoint:
            raise UsageError(
                f"{self.nodes} nodes need a place to meet: HOST:PORT of node 0, the same on all",
                f"--rdzv-endpoint {EXAMPLE_ENDPOINT}",
            )


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """
    >>> split_endpoint("node0:29500"), split_endpoint("[::1]:80")
    (('node0', 29500), ('::1', 80))
    """
    try:
        parts = urlsplit(f"//{endpoint}")
        if parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise UsageError(f"--rdzv-endpoint {endpoint!r} is not HOST:PORT", f"--rdzv-endpoint {EXAMPLE_ENDPOINT}")


def find_local_address(endpoint: str) -> str:
    """This machine's address on the way to the endpoint, one that the other nodes can reach.

    Debian gives a machine's own name the address 127.0.1.1, which means another machine to every other one. Raises
    DataError where the name means nothing here, or only that and it is not clear which address is meant.
    """
    host, port = split_endpoint(endpoint)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # connecting sends nothing
            probe.connect(address)
            found = probe.getsockname()[0]
    except OSError as error:
        raise DataError(
            f"--rdzv-endpoint {endpoint}: {host} cannot be reached from here ({error})", f"getent hosts {host}"
        ) from error

    if not is_loopback(found) or host == "localhost" or is_loopback(host):
        return found
    others = [address for address in list_interfaces().values() if not is_loopback(address)]
    if len(others) == 1:
        return others[0]
    raise DataError(
        f"--rdzv-endpoint {endpoint}: here {host} is {found}, where no other node can reach it",
        f"--rdzv-endpoint {others[0] if others else 'ADDRESS'}:{port}  # "
        + (f"the addresses of this machine: {', '.join(others)}" if others else "an address that all nodes can reach"),
    )


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("127.0.1.1"), is_loopback("::1"), is_loopback("10.0.0.1"), is_loopback("node0")
    (True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def find_interface(address: str) -> str:
    """The name of the network interface that has an IPv4 address; "" where the system does not say."""
    return next((name for name, other in list_interfaces().items() if other == address), "")


def list_interfaces() -> dict[str, str]:
    """The IPv4 address of each network interface that has one."""
    found = {}
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            found[name] = socket.inet_ntoa(reply[20:24])
    return found
