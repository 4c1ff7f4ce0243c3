"""A page answers its own address and its own requests, takes no uploads, and lets nobody guess passwords fast."""

import asyncio
import base64
import http.client
import os
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

from product import command, rank_page


def check(folder: Path) -> None:
    with rank_page(folder) as (address, _):
        from hf_instructgpt.app import serve

        own = urlsplit(address).netloc

        def status(method: str, path: str, host: str = own, **headers: str) -> int:
            connection = http.client.HTTPConnection(own, timeout=30)
            connection.request(
                method, path, body="{}" if method == "POST" else None, headers={"Host": host, **headers}
            )
            return connection.getresponse().status

        port = own.rpartition(":")[2]
        assert status("GET", "/") == status("GET", "/", f"localhost:{port}") == 200
        assert status("GET", "/", f"evil.example:{port}") == 400
        assert status("GET", "/", f"evil.example:{port}", Origin=f"http://evil.example:{port}") == 400
        assert status("GET", "/", Origin=address.rstrip("/")) == 200
        for origin in ("http://evil.example", "null", "http://localhost:1", f"http://localhost:{port}"):
            assert status("GET", "/", Origin=origin) == 403, origin
        for path in ("/gradio_api/upload", "/upload", "/gradio_api/upload/", "/gradio_api/upload?upload_id=1"):
            assert status("POST", path) == 403, path
        from hf_instructgpt.app import web

    wrong = [
        basic("ann", "guess"),
        basic("", "secret"),
        b"Bearer secret",
        b"Basic \xff",
        basic("ann", ""),
        b"Basic",
        b"x",
    ]
    headers = [None, *wrong, basic("ann", "secret"), basic("bob", "secret")]
    statuses, waited = asyncio.run(answers_and_delays(web, *headers))
    assert statuses == [401] * 8 + [200, 200] and waited == [0.25, 0.5, 1, 2, 4, 8, 8]
    passwords(folder, serve)
    for port in ("99999", "-1"):
        result = command("rank", "--model", "m", "--prompts", "p", "--output", folder / "r.jsonl", "--port", port)
        assert result.code == 2 and f"`--port` must be 1 to 65535, not {port}" in result.err
    result = command("compare", "--models", "a=x", "b=y", "--max_new_tokens", "0")
    assert result.code == 2 and "`--max_new_tokens` must be 1 or more, not 0" in result.err


def basic(name: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{name}:{password}".encode())


async def answers_and_delays(web, *headers: bytes | None) -> tuple[list[int], list[float]]:
    """How requests with these `Authorization` headers are answered, and how long those after wrong ones wait."""
    statuses, waited = [], []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def sleep(seconds):
        waited.append(seconds)

    async def send(message):
        statuses.extend([message["status"]] if "status" in message else [])

    guard = web.Guard(app, password="secret")
    with patch.object(web.asyncio, "sleep", sleep):
        for header in headers:
            known = [] if header is None else [(b"authorization", header)]
            scope = {"type": "http", "method": "GET", "path": "/", "headers": known, "client": ("10.0.0.1", 1)}
            await guard(scope, None, send)
    return statuses, waited


def passwords(folder: Path, serve) -> None:
    """By a file or the environment, so that `ps` does not show it."""
    from hf_instructgpt.errors import InputError

    options = {"host": "0.0.0.0", "port": None, "share": False, "password": None}
    (folder / "password").write_text("from a file\n")

    def password(**more):
        return serve.launch_options(**options, **more)["app_kwargs"]["middleware"][-1].kwargs["password"]

    assert password(password_file=folder / "password") == "from a file"
    with patch.dict(os.environ, {"HF_INSTRUCTGPT_PASSWORD": "from outside"}):
        assert password() == "from outside"
    (folder / "empty").write_text("\n")
    for file in (folder / "empty", folder / "missing", folder):
        try:
            serve.launch_options(**options, password_file=file)
        except InputError as error:
            assert "`--password_file`" in str(error)
        else:
            raise AssertionError(f"{file} was taken")
