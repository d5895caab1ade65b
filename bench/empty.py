"""The least that an HTTP API in Python can be: `python -m bench.empty` answers everything with the same few bytes."""

from __future__ import annotations

from aiohttp import web

from bench.serving import serve_until_stdin_closes


async def _answer(_request: web.Request) -> web.Response:
    return web.Response(body=b"{}", content_type="application/json")


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/{path:.*}", _answer)
    serve_until_stdin_closes(app)
