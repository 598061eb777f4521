"""Where nodes meet: names and addresses of this machine, with a resolver of the test's own."""

import socket

import pytest

import nanochat.launch.cluster as cluster_module
from nanochat.errors import DataError
from nanochat.launch.cluster import find_interface, find_local_address, list_interfaces

resolve = socket.getaddrinfo


@pytest.fixture(autouse=True)
def debian(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose own name stands for 127.0.1.1."""
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: resolve("127.0.1.1" if host == "node0" else host, *a, **k)
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.9"])
def test_a_meeting_on_this_machine_alone_is_one(host: str) -> None:
    assert find_local_address(f"{host}:29500").startswith("127.") or host == "localhost"


def test_a_name_that_means_only_this_machine_stands_for_its_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "list_interfaces", lambda: {"lo": "127.0.0.1", "eth0": "10.0.0.5"})
    assert find_local_address("node0:29500") == "10.0.0.5"


@pytest.mark.parametrize(
    ("interfaces", "hint"),
    [
        ({"lo": "127.0.0.1", "eth0": "10.0.0.5", "ib0": "10.1.0.5"}, "--rdzv-endpoint 10.0.0.5:29500"),
        ({"lo": "127.0.0.1"}, "--rdzv-endpoint ADDRESS:29500"),
    ],
)
def test_where_it_is_not_clear_which_address_is_meant_we_ask(
    monkeypatch: pytest.MonkeyPatch, interfaces: dict[str, str], hint: str
) -> None:
    monkeypatch.setattr(cluster_module, "list_interfaces", lambda: interfaces)
    with pytest.raises(DataError, match="here node0 is 127") as caught:
        find_local_address("node0:29500")
    assert caught.value.hint.startswith(hint)


def test_an_interface_has_the_address_that_it_was_found_by() -> None:
    for name, address in list_interfaces().items():
        assert list_interfaces()[find_interface(address)] == address and name
    assert find_interface("203.0.113.77") == ""
