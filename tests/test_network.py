"""What a library cannot read in the environment is one sentence with the variable and the command that mends it."""

import importlib
import shlex
from collections.abc import Callable

import httpx
import pytest

from nanochat.download.hub import Hub
from nanochat.errors import UsageError
from nanochat.network import client_errors, explain_client
from nanochat.tui.client import Server

ELSEWHERE = "https://models.example/v1"


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def change(**values: str) -> None:
        for name in ("all_proxy", "http_proxy", "https_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    change()
    return change


@pytest.mark.parametrize(
    ("variables", "said", "hint"),
    [
        ({"all_proxy": "socks://me:secret@p:1"}, "all_proxy=socks://p:1: socks is no kind", "all_proxy=socks5://p:1"),
        ({"https_proxy": "ftp://p:1"}, "https_proxy=ftp://p:1: ftp is no kind", "unset https_proxy"),
        ({"HTTP_PROXY": "http://p:port"}, "HTTP_PROXY=http://p:port is no address", "HTTP_PROXY=http://HOST:PORT"),
        ({"http_proxy": "http://p", "no_proxy": "[::1],b"}, "no_proxy=[::1],b: ", "export no_proxy=::1,b"),
        ({"SSL_CERT_FILE": "/none.pem"}, "SSL_CERT_FILE=/none.pem: the certificates cannot", "unset SSL_CERT_FILE"),
    ],
)
def test_the_chat_with_a_server_names_the_variable(
    environ: Callable[..., None], variables: dict[str, str], said: str, hint: str
) -> None:
    environ(**variables)
    with pytest.raises(UsageError) as caught:
        Server(ELSEWHERE).list_models()
    assert said in caught.value.message and hint in caught.value.hint and "secret" not in str(caught.value)
    assert shlex.split(caught.value.hint, comments=True)[0] in ("export", "unset")


def test_a_socks_proxy_says_which_package_it_needs_and_works_with_it(environ: Callable[..., None]) -> None:
    environ(all_proxy="socks5://127.0.0.1:1")
    try:
        importlib.import_module("socksio")
    except ImportError:
        with pytest.raises(UsageError, match="needs the package socksio") as caught:
            Server(ELSEWHERE).list_models()
        assert caught.value.hint.startswith("pip install socksio")
    else:
        with client_errors():
            httpx.Client().close()


@pytest.mark.parametrize(
    ("variables", "error", "said"),
    [
        ({"HF_HUB_DOWNLOAD_TIMEOUT": "abc"}, ValueError("invalid literal"), "HF_HUB_DOWNLOAD_TIMEOUT=abc is no"),
        ({"HF_ENDPOINT": "http://[::1"}, ValueError("Invalid IPv6 URL"), "HF_ENDPOINT=http://[::1 is no address"),
        ({"SSL_CERT_DIR": "/none"}, PermissionError(13, "Permission denied"), "SSL_CERT_DIR=/none: .*denied"),
        ({}, ValueError("something new"), "no HTTP client can be made .*: something new"),
    ],
)
def test_what_a_client_raises_as_it_is_made_is_explained(
    variables: dict[str, str], error: Exception, said: str
) -> None:
    with pytest.raises(UsageError, match=said.replace("[", r"\[")):
        with client_errors(variables):
            raise error


def test_a_bug_is_no_wrong_variable() -> None:
    with pytest.raises(KeyError), client_errors({}):
        raise KeyError("a")
    assert "http_proxy" not in explain_client(ValueError("x"), {"http_proxy": "http://p:1"}).message


def test_the_hub_refuses_a_token_and_an_address_before_it_asks(environ: Callable[..., None]) -> None:
    environ(HF_TOKEN="schl\u00fcssel")
    with pytest.raises(UsageError, match="HF_TOKEN") as caught:
        Hub()
    assert "schl" not in str(caught.value) + caught.value.hint
    environ(HF_TOKEN="key")
    with pytest.raises(UsageError, match="HF_ENDPOINT=hub is no address"):
        Hub("hub")
