"""A page of our own: static files, JSON requests, and who may send them."""

import asyncio
import base64
import hmac
import json
import secrets
from collections import Counter, defaultdict
from importlib.resources import files
from typing import Annotated

import gradio as gr
from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from ..errors import InputError
from ..language import language

TYPES = {".js": "text/javascript", ".css": "text/css"}
# No script but ours runs, nothing is loaded from elsewhere; a Space shows its app in a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self' https://huggingface.co"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MAX_BODY = 1_000_000  # bytes of a request
NAME_LENGTH = 100  # characters
# In the model of a request's body: a string that can be written to a file. JSON may hold half a surrogate pair.
Text = Annotated[str, AfterValidator(lambda text: text.encode().decode())]
# Seconds that a wrong password waits; doubled with each one from the same address.
FIRST_DELAY, LONGEST_DELAY = 0.25, 8.0
# What Gradio asks of itself while it starts, before it knows a password.
STARTUP = "/gradio_api/startup-events"
TICKET = "hf_instructgpt_ticket"
UPLOADS = ("/upload", "/upload_progress", "/process_recording")


class Guard:
    """ASGI middleware: only the page itself may send requests, nobody may upload, and a password may be needed.

    The password is asked for by HTTP's Basic authentication, under any name; guessing is slow. Who gave it once has a
    ticket, a cookie, and does not wait behind others who guess.
    """

    def __init__(self, app, password: str | None = None):
        self.app, self.password = app, password
        self.failures, self.locks = Counter(), defaultdict(asyncio.Lock)
        self.key = secrets.token_bytes()

    async def __call__(self, scope, receive, send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers, path = Headers(scope=scope), scope.get("path", "").rstrip("/")
        answer = None
        if "origin" in headers and headers["origin"].partition("://")[2] != headers.get("host"):
            answer = PlainTextResponse("Another page's request.", status_code=403)
        elif int(headers.get("content-length", 0)) > MAX_BODY or "transfer-encoding" in headers:  # of unknown length
            answer = PlainTextResponse("Too long.", status_code=413)
        elif path.endswith(UPLOADS):
            answer = PlainTextResponse("No uploads here.", status_code=403)
        elif self.password is not None and path != STARTUP and not await self._is_known(scope, headers):
            asked = {"WWW-Authenticate": 'Basic realm="Your name, and the password", charset="UTF-8"'}
            answer = PlainTextResponse("Name and password, please.", status_code=401, headers=asked)
        await (answer or self.app)(scope, receive, self._with_ticket(scope, send))

    def _ticket(self, name: str) -> str:
        return hmac.digest(self.key, name.encode(), "sha256").hex()

    def _with_ticket(self, scope, send):
        """`send`, by which a person who has just given the password gets a ticket."""

        async def with_ticket(message) -> None:
            if message["type"] == "http.response.start" and scope.get("is_new"):
                ticket = f"{TICKET}={self._ticket(scope['annotator'])}; HttpOnly; SameSite=Strict; Path=/"
                message["headers"] = [*message.get("headers", []), (b"set-cookie", ticket.encode())]
            await send(message)

        return with_ticket

    async def _is_known(self, scope, headers: Headers) -> bool:
        if "authorization" not in headers:  # a browser's first request
            return False
        name, password = credentials(headers["authorization"])
        scope["annotator"] = name
        ticket = cookie_parser(headers.get("cookie", "")).get(TICKET, "")
        if name and hmac.compare_digest(ticket.encode(), self._ticket(name).encode()):
            return True
        # A forwarded address may be made up: all requests that have one wait for each other.
        address = "forwarded" if "x-forwarded-for" in headers else scope["client"][0]
        async with self.locks[address] if self.failures[address] else asyncio.Semaphore():
            if self.failures[address]:  # simultaneous guesses wait for each other
                await asyncio.sleep(min(FIRST_DELAY * 2 ** (self.failures[address] - 1), LONGEST_DELAY))
            is_known = bool(name) and hmac.compare_digest(password.encode(), self.password.encode())
            self.failures[address] = 0 if is_known else self.failures[address] + 1
        scope["is_new"] = is_known
        return is_known


def credentials(header: str) -> tuple[str, str]:
    """Name and password of an `Authorization` header; both are empty if it holds none."""
    kind, _, encoded = header.partition(" ")
    try:
        text = base64.b64decode(encoded, validate=True).decode() if kind.lower() == "basic" else ""
    except ValueError:
        text = ""
    name, _, password = text.partition(":")
    return name.strip(), password


def who(request: Request, given: str) -> str:
    """The name that a person logged in with, if a password is needed, else the one that the page sends."""
    return request.scope.get("annotator", given).strip()


def refused(code: str, message: str) -> HTTPException:
    """What a request is answered with if it cannot be done; the page's script knows the code."""
    return HTTPException(409, {"code": code, "message": message})


def _malformed(request: Request, error: RequestValidationError) -> Response:
    """The answer to a body of other types; it repeats nothing of the body, which may be no valid Unicode."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"] if part != "body")
    return JSONResponse({"detail": {"code": "malformed", "message": f"{place}: {found['msg']}"}}, status_code=422)


def _failed(request: Request, error: OSError | InputError) -> Response:
    """The answer if a file cannot be written or read, or the Hub not be reached."""
    status = 409 if isinstance(error, InputError) else 503
    return JSONResponse({"detail": {"code": "failed", "message": str(error)}}, status_code=status)


def page_server(name: str, settings: dict, *, middleware: list[Middleware]) -> gr.Server:
    """A server of the page `page/NAME.html`, of the files beside it, and of nothing else.

    The page's script finds `settings`, with the language of the command, in the element `#settings`. Its JSON requests
    are added by `@server.post(...)`.
    """
    handlers = {RequestValidationError: _malformed, OSError: _failed, InputError: _failed}
    server = gr.Server(
        docs_url=None, redoc_url=None, openapi_url=None, middleware=middleware, exception_handlers=handlers
    )
    folder = files(__package__) / "page"
    known = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith(tuple(TYPES))}
    html = (folder / f"{name}.html").read_text(encoding="utf-8")
    text = json.dumps({"language": language(), **settings}, ensure_ascii=False).replace("<", "\\u003c")

    whole = html.replace("{{ language }}", language()).replace("{{ settings }}", text)

    @server.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(whole, headers=HEADERS)

    @server.get("/page/{file}")
    def part(file: str) -> Response:
        if file not in known:
            raise HTTPException(404)
        return Response(known[file], media_type=TYPES["." + file.rpartition(".")[2]], headers=HEADERS)

    return server
