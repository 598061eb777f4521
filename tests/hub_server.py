"""A small hub of our own on the loopback, for tests and trials: what huggingface_hub asks for, and many faults.

    python tests/hub_server.py --data DIR --port 8123        # then, elsewhere: HF_ENDPOINT=http://127.0.0.1:8123
    python tests/hub_server.py --data DIR --faults 0.3       # a third of the answers is bad

DIR/text/shard_*.parquet is served as the fineweb-edu data set, DIR/hub/<owner>/<name>/ as the data set owner/name, and
DIR/core/ as a zip at /files/eval_bundle.zip. A commit is the hash of a data set's names and contents.
"""

import argparse
import hashlib
import io
import json
import random
import re
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))  # where this runs as a program

from tests.http_server import EndingServer
from tests.hub_faults import FAULTS, Answers

TEXT_REPO = "karpathy/fineweb-edu-100b-shuffle"


@dataclass
class File:
    """What is served at a path."""

    read: Callable[[], bytes]
    is_large: bool = True

    @cached_property
    def body(self) -> bytes:
        return self.read()

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @cached_property
    def blob(self) -> str:
        """Git's hash of the content."""
        return hashlib.sha1(f"blob {len(self.body)}\0".encode() + self.body).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.blob


@dataclass
class Repo:
    """A data set by path."""

    files: dict[str, File] = field(default_factory=dict)

    @cached_property
    def commit(self) -> str:
        lines = [f"{path} {self.files[path].sha256}\n" for path in sorted(self.files)]
        return hashlib.sha1("".join(lines).encode()).hexdigest()


@dataclass
class Rule:
    """Answer with a fault where the path matches, so many times (None: for ever)."""

    fault: str
    pattern: str
    times: int | None


class HubServer(EndingServer):
    """repos by owner/name, plain files by the rest of /files/..., and what goes wrong. Use `serve`."""

    def __init__(
        self, port: int = 0, tick_seconds: float = 0.02, retry_after: int = 0, bytes_per_second: float = 0
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.repos: dict[str, Repo] = {}
        self.old: dict[tuple[str, str], Repo] = {}
        """Data sets as they were at another commit."""
        self.plain: dict[str, File] = {}
        self.rules: list[Rule] = []
        self.random: tuple[random.Random, float, tuple[str, ...]] | None = None
        self.elsewhere = ""
        """Where a redirect leads, instead of to this server."""
        self.token: str | None = None
        """The only one that may read, where set."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.done: dict[str, int] = {}
        """How often each fault was the answer."""
        self.tick_seconds, self.retry_after, self.bytes_per_second = tick_seconds, retry_after, bytes_per_second
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repo: str, path: str, body: bytes, is_large: bool = True) -> None:
        """Put a file into a data set, which gets a new commit; what it was stays to be had by its commit."""
        before = self.repos.get(repo, Repo())
        if before.files:
            self.old[repo, before.commit] = before
        self.repos[repo] = Repo({**before.files, path: File(lambda: body, is_large)})

    def misbehave(self, fault: str, pattern: str = "/resolve/", times: int | None = 1) -> None:
        """Answer the next requests whose path has the pattern (a regular expression) with a fault."""
        assert fault in FAULTS, fault
        self.rules.append(Rule(fault, pattern, times))

    def choose_fault(self, path: str) -> str | None:
        with self.lock:
            for rule in self.rules:
                if (rule.times is None or rule.times > 0) and re.search(rule.pattern, path):
                    if rule.times is not None:
                        rule.times -= 1
                    self.done[rule.fault] = self.done.get(rule.fault, 0) + 1
                    return rule.fault
            if self.random is not None and "detour=" not in path:
                chance, share, kinds = self.random
                if chance.random() < share:
                    fault = chance.choice(kinds)
                    self.done[fault] = self.done.get(fault, 0) + 1
                    return fault
        return None

    def count(self, pattern: str) -> int:
        """Requests whose path has the pattern."""
        return sum(bool(re.search(pattern, path)) for _, path, _ in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone, as the killed ones have, is no news."""


class Handler(Answers):
    """What is served where."""

    server: HubServer

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        body_in = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, dict(self.headers)))
        fault = self.server.choose_fault(self.path)
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.refuse_politely(401, "GatedRepo", "Access to this data set is restricted")
        elif path == "/loop":
            self.reply(302, b"", {"Location": f"{self.server.url}/loop"})
        elif path == "/expired":
            self.reply(403, b"expired", {})
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            if (found := self.find(match[1], match[2] or "main")) is not None:
                self.send_json(describe(match[1], found), fault)
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            if (found := self.find(match[1], match[2])) is not None:
                self.send_tree(found, match[3] or "", parse_qs(parts.query), path, fault)
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            if (found := self.find(match[1], match[2])) is not None:
                wanted = read_paths(body_in, self.headers.get("Content-Type", ""))
                self.send_json([tree_item(name, found.files[name]) for name in wanted if name in found.files], fault)
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if (found := self.find(match[1], match[2])) is not None:
                if match[3] in found.files:
                    self.send_file(found.files[match[3]], found.commit, fault)
                else:
                    self.refuse_politely(404, "EntryNotFound", "Entry not found")
        elif path.startswith("/files/") and path.removeprefix("/files/") in self.server.plain:
            self.send_file(self.server.plain[path.removeprefix("/files/")], None, fault)
        else:
            self.refuse_politely(404, "RepoNotFound", "Repository not found")

    def find(self, name: str, revision: str) -> Repo | None:
        repo = self.server.repos.get(name)
        if repo is None:
            self.refuse_politely(404, "RepoNotFound", "Repository not found")
        elif revision in ("main", repo.commit):
            return repo
        elif (name, revision) in self.server.old:
            return self.server.old[name, revision]
        else:
            self.refuse_politely(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def refuse_politely(self, status: int, code: str, message: str) -> None:
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def send_tree(
        self, repo: Repo, folder: str, query: dict[str, list[str]], path: str, fault: str | None, page: int = 1_000
    ) -> None:
        names = sorted(name for name in repo.files if not folder or name.startswith(f"{folder}/"))
        items: list[dict[str, Any]] = [tree_item(name, repo.files[name]) for name in names]
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            depth = folder.count("/") + 1 if folder else 0
            inner = {"/".join(name.split("/")[: depth + 1]) for name in names if name.count("/") > depth}
            items = [item for item in items if item["path"].count("/") == depth]
            items += [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(inner)]
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + page < len(items):
            kept = "&".join(f"{key}={values[0]}" for key, values in query.items() if key != "cursor")
            headers["Link"] = f'<{self.server.url}{path}?{kept}&cursor={start + page}>; rel="next"'
        self.send_json(items[start : start + page], fault, headers)

    def send_json(self, value: Any, fault: str | None, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        if fault == "half_json":
            body, fault = body[: len(body) // 2], None
        self.deliver(200, body, {"Content-Type": "application/json", **(headers or {})}, fault)

    def send_file(self, file: File, commit: str | None, fault: str | None) -> None:
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "ETag": f'"{file.etag}"'}
        if commit:
            headers |= {
                "X-Repo-Commit": commit,
                "X-Linked-Size": str(len(file.body)),
                "X-Linked-ETag": f'"{file.etag}"',
            }
        if fault == "no_headers":
            headers, fault = {"Content-Type": "application/octet-stream"}, None
        status, body = 200, file.body
        wish = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range", f'"{file.etag}"') == f'"{file.etag}"'
        if fault == "ignores_range":
            wish, fault = None, None
        if wish and unchanged:
            start = int(wish[1])
            end = min(int(wish[2] or len(body)), len(body) - 1)
            if fault == "other_range":
                start, fault = start // 2, None
            if start >= len(body):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            status, body = 206, body[start : end + 1]
        self.deliver(status, body, headers, fault)


def describe(name: str, repo: Repo) -> dict[str, Any]:
    """What the hub says of a data set."""
    siblings = [
        {"rfilename": path, "size": len(file.body), "blobId": file.blob}
        | ({"lfs": {"sha256": file.sha256, "size": len(file.body), "pointerSize": 134}} if file.is_large else {})
        for path, file in sorted(repo.files.items())
    ]
    return {"id": name, "sha": repo.commit, "private": False, "gated": False, "siblings": siblings}


def tree_item(path: str, file: File) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "path": path, "size": len(file.body), "oid": file.blob}
    if file.is_large:
        item["lfs"] = {"oid": file.sha256, "size": len(file.body), "pointerSize": 134}
    return item


def read_paths(body: bytes, content_type: str) -> list[str]:
    if content_type.startswith("application/json"):
        return json.loads(body)["paths"]
    return parse_qs(body.decode()).get("paths", [])


@contextmanager
def serve(port: int = 0, **options: Any) -> Iterator[HubServer]:
    """A server in threads of this process, down again when the block ends."""
    server = HubServer(port, **options)
    with server.running():
        try:
            yield server
        finally:
            server.closing.set()


def load_folder(server: HubServer, folder: Path) -> None:
    """Serve DIR/text, DIR/hub and DIR/core."""
    shards = sorted((folder / "text").glob("shard_*.parquet"))
    if shards:
        server.repos[TEXT_REPO] = Repo({path.name: File(path.read_bytes) for path in shards})
    for repo in sorted((folder / "hub").glob("*/*")):
        files = [path for path in sorted(repo.rglob("*")) if path.is_file()]
        server.repos[f"{repo.parent.name}/{repo.name}"] = Repo(
            {path.relative_to(repo).as_posix(): File(path.read_bytes, path.suffix == ".parquet") for path in files}
        )
    core = next((path.parent for path in (folder / "core").rglob("core.yaml")), None)
    if core is not None:
        server.plain["eval_bundle.zip"] = File(lambda: zip_folder(core))


def zip_folder(folder: Path, top: str = "eval_bundle") -> bytes:
    """A zip of a folder, the same bytes every time."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.writestr(zipfile.ZipInfo(f"{top}/{path.relative_to(folder).as_posix()}"), path.read_bytes())
    return memory.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--faults", type=float, default=0.0, help="share of the answers that are bad")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0, help="bytes a second of one connection; 0: no limit")
    options = parser.parse_args()
    with serve(options.port, bytes_per_second=options.rate) as server:
        load_folder(server, options.data)
        if options.faults:
            server.random = (random.Random(options.seed), options.faults, FAULTS)
        for name, repo in server.repos.items():
            print(f"{name}: {len(repo.files)} files", flush=True)
        print(f"HF_ENDPOINT={server.url}  CORE: {server.url}/files/eval_bundle.zip", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
