"""What an HTTP client reads from the environment, and the sentence for what it cannot read there.

The clients (httpx, and huggingface_hub's own) raise many things as they are made: for proxies, for certificates, for
numbers that are none. Opens no socket; reads the environment.
"""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

from nanochat.errors import UsageError

PROXIES = ("all_proxy", "http_proxy", "https_proxy")
SCHEMES = ("http", "https", "socks5", "socks5h")
"""Of a proxy, as httpx knows them."""
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")


@contextmanager
def client_errors(environ: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn what an HTTP client raises as it is made into a UsageError that names the variable.

    environ: None is the process's own.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if not isinstance(error, (ImportError, ValueError, OSError)) and type(error).__name__ != "InvalidURL":
            raise
        raise explain_client(error, os.environ if environ is None else environ) from error


def explain_client(error: Exception, environ: Mapping[str, str]) -> UsageError:
    """Name the variable that an HTTP client cannot use. A proxy's user and password are not repeated."""
    if isinstance(error, OSError):
        for name in CERTIFICATES:
            if environ.get(name):
                why = error.strerror or str(error)
                return UsageError(f"{name}={environ[name]}: the certificates cannot be read: {why}", f"unset {name}")
    if (endpoint := environ.get("HF_ENDPOINT")) and not is_address(endpoint):
        return wrong_endpoint(endpoint)
    for name in NUMBERS:
        if environ.get(name) and not environ[name].isdecimal():
            return UsageError(f"{name}={environ[name]} is no whole number of seconds", f"export {name}=10")
    for name, value in sorted(environ.items()):
        if name.lower() in PROXIES and (found := explain_proxy(name, value.strip(), error)):
            return found
    for name, value in sorted(environ.items()):
        if name.lower() == "no_proxy" and type(error).__name__ == "InvalidURL":
            bare = value.replace("[", "").replace("]", "")
            hint = f"unset {name}" if bare == value else f"export {name}={shlex.quote(bare)}"
            return UsageError(f"{name}={value}: the HTTP client cannot read it: {error}", hint)
    return UsageError(
        f"no HTTP client can be made with the variables of this environment: {error}",
        "env | grep -iE 'proxy|ssl|^hf_'  # what it reads",
    )


def is_address(url: str) -> bool:
    """
    >>> [is_address(url) for url in ("https://a.b/c", "http://[::1]:80", "a.b", "http://", "http://[::1", "http://a:x")]
    [True, True, False, False, False, False]
    """
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url == url.strip()
    except ValueError:  # also of .port
        return False


def wrong_endpoint(value: str) -> UsageError:
    return UsageError(f"HF_ENDPOINT={value} is no address of a hub", "export HF_ENDPOINT=https://huggingface.co")


def explain_proxy(name: str, value: str, error: Exception) -> UsageError | None:
    """What is wrong with a proxy; None where nothing is, or nothing is set.

    >>> str(explain_proxy("all_proxy", "socks://me:secret@p:1080", ValueError()))
    'all_proxy=socks://p:1080: socks is no kind of proxy that is known here (http, https, socks5, socks5h)'
    """
    if not value:
        return None
    scheme, _, rest = value.rpartition("://")
    scheme, rest = scheme.lower() or "http", rest.rpartition("@")[2]
    place = rest.partition("/")[0]
    if scheme not in SCHEMES:
        hint = f"export {name}=socks5://{place}" if scheme.startswith("socks") else f"unset {name}"
        return UsageError(
            f"{name}={scheme}://{rest}: {scheme} is no kind of proxy that is known here ({', '.join(SCHEMES)})", hint
        )
    if not is_address(f"http://{place}"):
        return UsageError(f"{name}={scheme}://{rest} is no address of a proxy", f"export {name}={scheme}://HOST:PORT")
    if scheme.startswith("socks") and isinstance(error, ImportError):
        return UsageError(
            f"{name}={scheme}://{rest}: a SOCKS proxy needs the package socksio, which is not installed",
            f"pip install socksio  # or: unset {name}",
        )
    return None
