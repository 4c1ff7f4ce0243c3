"""An HTTP server on this machine with `/v1/chat/completions`: a test's function answers in the place of an LLM."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def chat(content, finish_reason="stop", **message):
    """A chat completion."""
    return {
        "choices": [{"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish_reason}]
    }


def asked(question):
    """The prompt and the two answers that a question shows, in its order."""
    shown = re.findall(r"^<(prompt|answer-A|answer-B)-(\w+)>\n(.*?)\n</\1-\2>$", question, flags=re.M | re.S)
    assert [name for name, *_ in shown] == ["prompt", "answer-A", "answer-B"]
    return tuple(text for *_, text in shown)


class ChatServer(ThreadingHTTPServer):
    """`answer` takes a question and returns a completion (or its content), or (status, content, headers).

    None hangs up. `questions` and `headers` are those of all requests.
    """

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.questions, self.bodies, self.headers, self.lock = answer, [], [], [], threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with server.lock:
            server.questions.append(question)
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
        answer = (404, "no such path", {}) if self.path != "/v1/chat/completions" else server.answer(question)
        if answer is None:
            self.close_connection = True
            return
        status, content, headers = answer if isinstance(answer, tuple) else (200, answer, {})
        content = chat(content) if isinstance(answer, str) else content
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
        try:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:  # the client waits no longer
            self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def serving(answer):
    server = ChatServer(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
