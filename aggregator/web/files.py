"""The admin page: the files of ``static``, which hold no data, so that no token is needed to get them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from aggregator.web.answers import Refusal, tagged

FOLDER = Path(__file__).parent / "static"

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}


def there_is_a_page(folder: Path = FOLDER) -> bool:
    """Return whether there is anything to serve."""
    return (folder / "index.html").is_file()


async def serve_file(request: Request) -> Response:
    """Answer with the file that the rest of the path names, index.html for none."""
    name = request.path_params["name"] or "index.html"
    path = _files(FOLDER).get(name)
    if path is None:
        raise Refusal(404, "there is nothing here")
    state = path.stat()
    return tagged(
        request,
        _read(path, state.st_mtime_ns),
        _TYPES.get(path.suffix, "application/octet-stream"),
        {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"},
    )


@lru_cache
def _files(folder: Path) -> dict[str, Path]:
    """Return what may be asked for, by name: a path that is not a key is no file, whatever dots it has in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@lru_cache(maxsize=256)
def _read(path: Path, _changed_at: int) -> bytes:
    return path.read_bytes()
