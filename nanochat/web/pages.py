"""The page's own files, as they are: no build step, nothing from another host."""

import hashlib
import importlib.resources

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def read_files() -> dict[str, bytes]:
    """The files of the page by name."""
    folder = importlib.resources.files("nanochat.web") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in KINDS}


def build_page_router() -> APIRouter:
    """`/` and `/page/NAME`. The browser asks each time whether a file is another one now."""
    router = APIRouter()
    files = read_files()
    tags = {name: f'"{hashlib.sha256(body).hexdigest()[:16]}"' for name, body in files.items()}

    def send(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        headers = {"ETag": tags[name], "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=KINDS[name.rpartition(".")[2]], headers=headers)

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return send("index.html", request)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def file(name: str, request: Request) -> Response:
        return send(name, request)

    return router
