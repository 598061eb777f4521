"""The hub, through huggingface_hub's own HTTP client: what a data set consists of at a commit, and streams of bytes.

The client brings HF_ENDPOINT, HF_TOKEN, HF_HUB_DOWNLOAD_TIMEOUT, proxies and certificates; trying again is ours
(faults.py), because its own way waits as long as a server asks for. Knows no file of this machine.
"""

import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from nanochat import __version__
from nanochat.download.faults import Fault, Pace, Patience, read_retry_after
from nanochat.errors import DataError, UsageError
from nanochat.network import client_errors, is_address, wrong_endpoint

LISTING_BYTES = 64_000_000
"""The most that a listing may have; that of a data set of 2,000 files has 500 KB."""
TRANSIENT = (408, 416, 425, 429)
"""Besides all of 5xx: answers that another attempt may not get."""
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A file of a data set. sha256 where the hub says it (large files); else blob, git's SHA-1 of the content."""

    size: int
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True)
class Listing:
    """A data set at a commit: its files by path."""

    commit: str
    files: Mapping[str, HubFile]


class Hub:
    """endpoint: where the hub is; None: huggingface_hub's own, which HF_ENDPOINT sets.

    Raises UsageError where the environment holds what no client can use.
    """

    def __init__(self, endpoint: str | None = None, timeout_seconds: float | None = None) -> None:
        with client_errors():
            from huggingface_hub import __version__ as hub_version
            from huggingface_hub import constants, get_session, get_token

            session = get_session()
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        if not is_address(self.endpoint):
            raise wrong_endpoint(self.endpoint)
        self.timeout_seconds = timeout_seconds or float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        self._library: Any = importlib.import_module(type(session).__module__.partition(".")[0])  # httpx, httpx2
        # not build_hf_headers: it asks the hub, once a day, which program may be calling it
        self._user_agent = f"nanochat/{__version__}; hf_hub/{hub_version}"
        self._token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        if self._token and not re.fullmatch("[!-~]+", self._token):
            raise UsageError(
                "the hub's token (HF_TOKEN, or what `hf auth login` has kept) has characters that no header may have",
                "unset HF_TOKEN  # or copy it once more: hf auth login",
            )

    def file_url(self, repo: str, commit: str, path: str) -> str:
        """Where a file of a data set is."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(repo, path, repo_type="dataset", revision=commit, endpoint=self.endpoint)

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] = {}) -> Iterator[Any]:
        """Stream an address; the answer's status is 200 or 206, or 416 where a range was asked for.

        The user's token goes to the hub and nowhere else. Raises Fault where another attempt may do better and
        DataError where it may not.
        """
        from huggingface_hub import get_session
        from huggingface_hub.errors import OfflineModeIsEnabled

        sent = {"User-Agent": self._user_agent, "Accept-Encoding": "identity", **headers}
        if self._token and urlsplit(url)[:2] == urlsplit(self.endpoint)[:2]:
            sent["Authorization"] = f"Bearer {self._token}"
        try:
            with get_session().stream("GET", url, headers=sent, timeout=self.timeout_seconds) as response:
                self._check(response, url, "Range" in headers)
                yield response
        except OfflineModeIsEnabled:
            raise DataError("huggingface_hub is offline (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)") from None
        except self._library.UnsupportedProtocol as error:
            raise DataError(f"{url} is, or leads to, no http address") from error
        except self._library.TooManyRedirects as error:
            raise Fault("redirects that do not end") from error
        except self._library.TimeoutException as error:
            raise Fault(f"no answer for {self.timeout_seconds:.0f} seconds") from error
        except (self._library.HTTPError, self._library.InvalidURL, self._library.StreamError) as error:
            raise Fault(f"connection failed: {' '.join(str(error).split()) or type(error).__name__}") from error

    def _check(self, response: Any, url: str, ranged: bool) -> None:
        status, headers = response.status_code, response.headers
        if status in (200, 206) or (status == 416 and ranged):
            encoding = headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise Fault(f"answers compressed ({encoding}), which was not asked for")
            return
        reason = f"answers {status}"
        if said := headers.get("X-Error-Message"):
            reason += f" ({' '.join(said.split())[:200]})"
        moved = bool(response.history)  # the address that a redirect gives out is good for a time only
        if status in TRANSIENT or status >= 500 or status < 400 or (status == 403 and moved):
            raise Fault(reason, read_retry_after(headers.get("Retry-After")))
        if status in (401, 403):
            raise DataError(f"{url} {reason}", "accept the data set's terms on the hub, then set HF_TOKEN")
        raise DataError(f"{url} {reason}")

    def read_listing(self, repo: str, revision: str, patience: Patience) -> Listing:
        """One attempt to list a data set, in one request. Raises Fault and DataError as `open` does."""
        url = f"{self.endpoint}/api/datasets/{repo}/revision/{revision}?blobs=true"
        body, pace = bytearray(), Pace(patience)
        with self.open(url) as response:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > LISTING_BYTES:
                    raise Fault(f"the listing of {repo} does not end")
                pace.take(len(chunk))
        return parse_listing(bytes(body), repo)


def parse_listing(body: bytes, repo: str) -> Listing:
    """Read what the hub says of a data set. Raises Fault where it is cut, is no JSON or lacks what we rely on."""
    try:
        value = json.loads(body)
        commit = value["sha"]
        if not COMMIT.fullmatch(commit):
            raise ValueError(f"sha = {commit!r} is no commit")
        files = {item["rfilename"]: _parse_file(item) for item in value["siblings"] if _is_safe(item["rfilename"])}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Fault(f"the listing of {repo} cannot be read: {type(error).__name__}: {error}") from error
    return Listing(commit, files)


def _parse_file(item: dict[str, Any]) -> HubFile:
    large = item.get("lfs") or {}
    size, sha256, blob = large.get("size", item.get("size")), large.get("sha256"), item.get("blobId")
    if type(size) is not int or size < 0:
        raise ValueError(f"size = {size!r} of {item['rfilename']}")
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 = {sha256!r} of {item['rfilename']}")
    if sha256 is None and not (isinstance(blob, str) and COMMIT.fullmatch(blob)):
        raise ValueError(f"no hash of {item['rfilename']}")
    return HubFile(size, sha256, None if sha256 else blob)


def _is_safe(path: str) -> bool:
    """
    >>> _is_safe("main/train.parquet"), _is_safe("../x"), _is_safe("/etc/x"), _is_safe("a//b"), _is_safe("a\\\\b")
    (True, False, False, False, False)
    """
    return "\\" not in path and "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))
