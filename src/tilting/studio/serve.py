"""The server of the page: on this machine, from this machine, for who may see it."""

from __future__ import annotations

import os
import secrets
import socket
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse
from filelock import FileLock, Timeout

from tilting.config.studio import StudioConfig
from tilting.disk import make_folder
from tilting.errors import TiltingError
from tilting.studio.jobs import Jobs
from tilting.studio.page import Studio, build, theme
from tilting.studio.resident import Resident
from tilting.studio.workspace import Workspace

COOKIE = "tilting-token"
SERVED = (".html", ".png", ".jpg", ".webp", ".json", ".jsonl", ".csv")
"""Files of runs that the page shows."""
LOCAL = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; form-action 'self'; object-src 'none'"
"""Content security policy of the page: it loads from this server only."""
ALONE = "sandbox allow-scripts; default-src data: blob: 'unsafe-inline'"
"""Content security policy of a run's page: it loads nothing, and is sandboxed from this site."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises TiltingError for a port that is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise TiltingError(f"cannot listen at {host}:{port} ({error.strerror}): give another --port, or 0 for any") from None
    return made


class Guard:
    """Admit requests with the token, from a page of this site, and addressed to a name of this machine.

    Args:
        app: what is guarded.
        token: that opens the page; None for a page that this machine alone reaches.
        hosts: names that it may be asked by; empty for any.
    """

    def __init__(self, app: Any, token: str | None, hosts: tuple[str, ...]):
        self.app, self.token, self.hosts = app, token, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return await _answer(send, 400, "This is another machine's name.")
        if origin is not None and urlsplit(origin).netloc != host and origin != "null":
            return await _answer(send, 403, "Another site's page has asked for this.")
        if origin == "null" and scope["method"] != "GET":
            return await _answer(send, 403, "A page without a site has asked for this.")
        if self.token is not None:
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if secrets.compare_digest(given.encode(), self.token.encode()):
                cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
                return await _answer(send, 303, "", ((b"location", b"/"), (b"set-cookie", cookie.encode())))
            kept = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
            if kept is None or not secrets.compare_digest(kept.value.encode(), self.token.encode()):
                return await _answer(send, 401, "This page opens by ?token=WORD, the word that the studio was started with.")

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                known = [name for name, _ in message["headers"]]
                more = [] if b"content-security-policy" in known else [(b"content-security-policy", LOCAL.encode())]
                more += [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        await self.app(scope, receive, sent)


async def _answer(send: Any, status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    body = text.encode()
    plain = ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": [*plain, *headers]})
    await send({"type": "http.response.body", "body": body})


def app_of(config: StudioConfig, studio: Studio) -> Any:
    """The page, and the files of runs beside it, behind the guard."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/runs/{name:path}")
    def file(name: str) -> Any:
        try:
            path = studio.workspace.file(name)
        except TiltingError as error:
            return PlainTextResponse(str(error), 404)
        if not path.is_file() or path.suffix.lower() not in SERVED:
            return PlainTextResponse(f"{name!r} is no file that is shown", 404)
        headers = {"content-security-policy": ALONE, "cache-control": "no-cache"}
        return FileResponse(path, headers=headers)

    gr.mount_gradio_app(
        app,
        build(studio),
        path="/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        show_error=False,
        max_file_size=studio.workspace.most,
        theme=theme(),
        css_paths=Path(__file__).with_name("studio.css"),
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    return Guard(app, config.token, ("127.0.0.1", "localhost", "::1") if config.loopback else ())


def serve(config: StudioConfig, quiet: bool = False) -> None:
    """Serve the page until Ctrl-C; commands that it started go on.

    Raises:
        TiltingError: the port is taken, or a studio is open for this workspace.
    """
    root = Path(config.workspace).resolve()
    workspace = Workspace(root, tuple(Path(one).resolve() for one in config.read), config.upload << 20)
    made = listening(config.host, config.port)
    make_folder(workspace.own)
    lock = FileLock(workspace.own / "lock", timeout=0)
    try:
        with lock:
            _serve(config, workspace, made, quiet)
    except Timeout:
        raise TiltingError(
            f"a studio is open already for {config.workspace!r}: use it, or choose another --workspace"
        ) from None
    finally:
        made.close()


def _serve(config: StudioConfig, workspace: Workspace, made: socket.socket, quiet: bool) -> None:
    os.environ["GRADIO_TEMP_DIR"] = str(workspace.own / "uploads")
    os.chdir(workspace.root)
    resident = Resident(workspace.root, workspace.own)
    resident.warm("pocket")
    try:
        jobs = Jobs(workspace.root, workspace.own / "jobs")
        jobs.watch()
        app = app_of(config, Studio(workspace, resident, jobs))
        settings = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, lifespan="on", ws="none")
        if not quiet:
            host, port = made.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            word = f"?token={config.token}" if config.token else ""
            print(f"studio: http://{shown}:{port}/{word}", flush=True)
        uvicorn.Server(settings).run(sockets=[made])
    finally:
        resident.close()
