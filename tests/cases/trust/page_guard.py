"""A page answers its own address and its own requests, takes no uploads, and lets nobody guess passwords fast."""

import asyncio
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
        assert status("GET", "/config") == status("GET", "/config", f"localhost:{port}") == 200
        assert status("GET", "/config", f"evil.example:{port}") == 400
        assert status("GET", "/config", f"evil.example:{port}", Origin=f"http://evil.example:{port}") == 400
        assert status("GET", "/config", Origin=address.rstrip("/")) == 200
        for origin in ("http://evil.example", "null", "http://localhost:1", f"http://localhost:{port}"):
            assert status("GET", "/config", Origin=origin) == 403, origin
        for path in ("/gradio_api/upload", "/upload", "/gradio_api/upload/", "/gradio_api/upload?upload_id=1"):
            assert status("POST", path) == 403, path
    assert asyncio.run(delays(serve, wrong=7)) == [0.25, 0.5, 0.5, 1, 2, 4, 8, 8]
    passwords(folder, serve)
    for port in ("99999", "-1"):
        result = command("rank", "--model", "m", "--prompts", "p", "--output", folder / "r.jsonl", "--port", port)
        assert result.code == 2 and f"`--port` must be 1 to 65535, not {port}" in result.err
    result = command("compare", "--models", "a=x", "b=y", "--max_new_tokens", "0")
    assert result.code == 2 and "`--max_new_tokens` must be 1 or more, not 0" in result.err


async def delays(serve, wrong: int) -> list[float]:
    """How long the logins behind so many wrong ones wait; after a right one none does."""
    waited, answers = [], [400] * wrong + [200, 200]
    answers[2:2] = [307]  # of `/login//`: it neither counts nor resets

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": answers.pop(0)})

    async def sleep(seconds):
        waited.append(seconds)

    async def send(message):
        pass

    guard = serve.Guard(app)
    scope = {"type": "http", "method": "POST", "path": "/login", "headers": [], "client": ("10.0.0.1", 1)}
    with patch.object(serve.asyncio, "sleep", sleep):
        while answers:
            await guard(scope, None, send)
    return waited


def passwords(folder: Path, serve) -> None:
    """By a file or the environment, so that `ps` does not show it."""
    from hf_instructgpt.errors import InputError

    options = {"host": "0.0.0.0", "port": None, "share": False, "password": None}
    (folder / "password").write_text("from a file\n")
    assert serve.launch_options(**options, password_file=folder / "password")["auth"]("ann", "from a file")
    with patch.dict(os.environ, {"HF_INSTRUCTGPT_PASSWORD": "from outside"}):
        assert serve.launch_options(**options)["auth"]("ann", "from outside")
    (folder / "empty").write_text("\n")
    for file in (folder / "empty", folder / "missing", folder):
        try:
            serve.launch_options(**options, password_file=file)
        except InputError as error:
            assert "`--password_file`" in str(error)
        else:
            raise AssertionError(f"{file} was taken")
