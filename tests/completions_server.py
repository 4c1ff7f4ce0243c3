"""An HTTP server on this machine with vLLM's paths: it samples from a real model and takes new weights."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file


class CompletionsServer(ThreadingHTTPServer):
    """Of the paths only those in `paths`. What tests change: `answers`, functions by path in place of its own."""

    def __init__(self, model, paths=("/collective_rpc", "/reset_prefix_cache")):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.adapters, self.lock = model.eval(), {}, threading.Lock()
        self.paths = {"/v1/models", "/v1/completions", *paths}
        self.answers, self.requests = {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, path):
        return [body for asked, body in self.requests if asked == path]

    def reload_weights(self, folder):
        weights = load_file(Path(folder, "model.safetensors"))
        missing, unexpected = self.model.load_state_dict(weights, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)

    def answer(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": "tiny"}]}
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            return self.reload_weights(body["kwargs"]["weights_path"])
        if path == "/update_weights_from_disk":
            return self.reload_weights(body["model_path"])
        if path == "/v1/load_lora_adapter":
            if not self.adapters:
                self.model = PeftModel.from_pretrained(self.model, body["lora_path"], body["lora_name"]).eval()
            else:
                self.model.load_adapter(body["lora_path"], body["lora_name"])
            self.adapters[body["lora_name"]] = body["lora_path"]
        elif path == "/v1/unload_lora_adapter":
            del self.adapters[body["lora_name"]]
        elif path == "/v1/completions":
            return self.complete(body)
        return {"success": True}

    @torch.no_grad()
    def complete(self, body):
        assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)
        if self.adapters:
            self.model.set_adapter(body["model"])
        generator = torch.Generator().manual_seed(body["seed"])
        ids, token_ids, logprobs = torch.tensor([body["prompt"]]), [], []
        while len(token_ids) < body["max_tokens"] and not {*token_ids} & {*body["stop_token_ids"]}:
            logits = self.model(input_ids=ids).logits[0, -1].float() / body["temperature"]
            token = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            token_ids.append(token.item())
            logprobs.append(logits.log_softmax(-1)[token].item())
            ids = torch.cat([ids, token[None]], -1)
        return {"choices": [{"text": "", "token_ids": token_ids, "logprobs": {"token_logprobs": logprobs}}]}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        with server.lock:
            server.requests.append((self.path, body))
            status, answer = 404, {"detail": "Not Found"}
            if self.path in server.answers:
                status, answer = server.answers[self.path](body)
            elif self.path in server.paths:
                status, answer = 200, server.answer(self.path, body)
        if status is None:  # hangs up
            self.close_connection = True
            return
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST  # noqa: N815

    def log_message(self, *args):
        pass


@contextmanager
def serving(model, **options):
    server = CompletionsServer(model, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
