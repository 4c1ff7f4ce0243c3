"""Sampling on an OpenAI-compatible HTTP server, such as vLLM's or SGLang's."""

import http.client
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from ..errors import InputError
from ..models.surgery import has_adapter, independent_copy
from .vllm import whole_weights

RULES = (
    ("url", lambda x: isinstance(x, str) and x.startswith(("http://", "https://")), "begin with http:// or https://"),
    ("sync", lambda x: x in ("folder", "adapter"), "be 'folder' or 'adapter'"),
    ("concurrency", lambda x: isinstance(x, int) and x >= 1, "be 1 or more"),
    ("timeout", lambda x: isinstance(x, int | float) and x > 0, "be above 0"),
    ("retries", lambda x: isinstance(x, int) and x >= 0, "be 0 or more"),
)


@dataclass
class ServerGenerator:
    """A [`~hf_instructgpt.sampling.generate.Generator`] that samples on an OpenAI-compatible HTTP server.

    Prompts and responses travel as token ids, one request per prompt, each with its own seed. Before each rollout the
    main process gives the server the policy's new weights.

    Args:
        url (`str`): The server's address, such as `http://127.0.0.1:8000`.
        model (`str`, *optional*): The name of the model on the server; the first one that it lists by default.
        sync (`str`, *optional*, defaults to `"folder"`): How the server gets the weights. `"folder"`: the policy, with
            an adapter merged, is saved and the server reloads it (vLLM with VLLM_SERVER_DEV_MODE=1, or SGLang).
            `"adapter"`: the LoRA adapter alone is saved and loaded (vLLM with `--enable-lora` and
            VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, serving the policy's base model).
        folder (`str`, *optional*): A folder that this machine and the server's machine share; weights are written to a
            new folder inside it. By default a temporary folder, for a server on this machine.
        concurrency (`int`, *optional*, defaults to 16): Maximum number of open requests per process.
        timeout (`float`, *optional*, defaults to 600): Maximum number of seconds per request.
        retries (`int`, *optional*, defaults to 3): How often a request is repeated when the connection fails.
        api_key_env (`str`, *optional*): The environment variable that holds the server's API key.

    Raises:
        InputError: An option is out of its range, or the server does not do what is asked; the message names it.
    """

    url: str
    model: str | None = None
    sync: str = "folder"
    folder: str | None = None
    concurrency: int = 16
    timeout: float = 600
    retries: int = 3
    api_key_env: str | None = None

    def __post_init__(self):
        if isinstance(self.url, str) and "@" in self.url:  # would be written to cards and run files
            raise InputError(
                "`generator`: `url` must hold no user and no password: name the environment variable of a key as "
                "`api_key_env`."
            )
        for name, holds, rule in RULES:
            if not holds(getattr(self, name)):
                raise InputError(f"`generator`: `{name}` must {rule}, not {getattr(self, name)!r}.")
        if self.api_key_env is not None and self.api_key_env not in os.environ:
            raise InputError(f"`generator`: the environment variable {self.api_key_env} (`api_key_env`) is not set.")
        self.url = self.url.rstrip("/").removesuffix("/v1")
        self.last_logprobs: list[list[float]] = []
        self._name = self.model  # what is sampled from: the model, or the newest adapter
        self._adapter: str | None = None
        self._temporary: tempfile.TemporaryDirectory | None = None

    @classmethod
    def from_options(cls, options: Any) -> "ServerGenerator":
        """Make the generator from [`PPOConfig`]'s option `generator`."""
        if not isinstance(options, dict) or "url" not in options:
            raise InputError(
                f"`generator` must be a mapping with a server's `url`, or with `rollouts` alone, not {options!r}."
            )
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(options) - set(known)):
            raise InputError(f"`generator`: unknown keys {', '.join(unknown)}. It may have {', '.join(known)}.")
        return cls(**options)

    # ---- Weights ---------------------------------------------------------------------------------------------------

    def sync_weights(self, policy: PreTrainedModel) -> None:
        is_main = PartialState().is_main_process
        weights, failure, name = self._gathered(policy, keep=is_main), None, None
        if is_main:
            try:
                name = self._give_adapter(policy) if self.sync == "adapter" else self._give_folder(policy, weights)
            except InputError as error:  # the other processes wait for the outcome
                failure = str(error)
        failure, self._name = broadcast_object_list([failure, name])
        if failure is not None:
            raise InputError(failure)

    def _gathered(self, policy: PreTrainedModel, *, keep: bool) -> dict[str, torch.Tensor] | None:
        """The state dict of a sharded policy, gathered by all processes; None if it is not sharded."""
        params = list(policy.parameters())
        if any(hasattr(p, "ds_id") for p in params):
            raise InputError(
                "`generator`: weights that ZeRO-3 has sharded cannot be sent to a server; use FSDP2 or ZeRO-2."
            )
        if not any(isinstance(p, DTensor) for p in params):
            return None
        weights = {}
        for name, p in whole_weights(policy):
            if keep:
                weights[name] = p.cpu()
        buffers = {name: x for name, x in policy.state_dict().items() if not isinstance(x, DTensor)}
        return buffers | weights

    def _give_folder(self, policy: PreTrainedModel, weights: dict[str, torch.Tensor] | None) -> str | None:
        path = self._path("policy")
        model = independent_copy(policy) if has_adapter(policy) else policy
        shows_bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # otherwise one per rollout
        try:
            model.save_pretrained(path, state_dict=weights)
        finally:
            if shows_bars:
                logging.enable_progress_bar()
        try:
            self._post("/update_weights_from_disk", {"model_path": path})
        except _NotFoundError:  # not SGLang
            self._reload_in_vllm(path)
        return self.model or self._first_model()

    def _reload_in_vllm(self, path: str) -> None:
        try:
            self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
        except _NotFoundError as error:
            raise InputError(
                f"the server {self.url} cannot take new weights: it has neither vLLM's `/collective_rpc` (start it "
                "with VLLM_SERVER_DEV_MODE=1) nor SGLang's `/update_weights_from_disk`."
            ) from error
        # vLLM's cache holds results of the old weights.
        if self._post("/reset_prefix_cache", {}) == {"success": False}:
            raise InputError(f"the server {self.url} is busy: its prefix cache could not be reset after a sync.")

    def _give_adapter(self, policy: PreTrainedModel) -> str:
        if not has_adapter(policy):
            raise InputError("`generator`: `sync` = 'adapter' needs a policy with a LoRA adapter.")
        path, old = self._path("adapter"), self._adapter
        policy.save_pretrained(path)
        # A new name, because vLLM caches prompts by the adapter's name.
        self._adapter = f"policy-{uuid.uuid4().hex}"
        try:
            self._post("/v1/load_lora_adapter", {"lora_name": self._adapter, "lora_path": path})
        except _NotFoundError as error:
            raise InputError(
                f"{error}\nStart vLLM with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 where it can read "
                "that folder, or leave `sync` out."
            ) from error
        if old is not None:
            self._post("/v1/unload_lora_adapter", {"lora_name": old})
        return self._adapter

    def _path(self, name: str) -> str:
        if self._temporary is None:  # removed with this object, or at exit
            if self.folder is not None:
                Path(self.folder).mkdir(parents=True, exist_ok=True)
            self._temporary = tempfile.TemporaryDirectory(prefix="policy-", dir=self.folder)
        return str(Path(self._temporary.name, name).absolute())

    def _first_model(self) -> str:
        answer = self._request("/v1/models")
        try:
            return answer["data"][0]["id"]
        except (TypeError, KeyError, IndexError) as error:
            raise InputError(f"the server {self.url} lists no model; name one by `model`.") from error

    # ---- Sampling --------------------------------------------------------------------------------------------------

    def generate(self, prompt_ids: list[list[int]], *, generation_config: GenerationConfig) -> list[list[int]]:
        # Seeds come from the trainer's random state, so that a resumed run asks with the same ones.
        seeds = torch.randint(2**31, (len(prompt_ids),)).tolist()
        with ThreadPoolExecutor(self.concurrency) as pool:
            answers = list(pool.map(partial(self._complete, generation_config), prompt_ids, seeds))
        self.last_logprobs = [logprobs for _, logprobs in answers]
        return [ids for ids, _ in answers]

    def _complete(self, config: GenerationConfig, prompt: list[int], seed: int) -> tuple[list[int], list[float]]:
        body = {
            "model": self._name,
            "prompt": prompt,
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "stop_token_ids": config.eos_token_id,
            "seed": seed,
            "logprobs": 1,
            "return_token_ids": True,
            # Otherwise the server uses the model's own generation settings.
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        answer = self._post("/v1/completions", body)
        try:
            choice = answer["choices"][0]
            ids = choice.get("token_ids", choice.get("response_token_ids"))  # vLLM's name, SGLang's
            logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise InputError(f"the server {self.url} gave an answer without `choices`: {answer!r:.200}") from error
        if ids is None:
            raise InputError(
                f"the server {self.url} returns no token ids for `return_token_ids`, and PPO needs the sampled ids: "
                "tokenizing the text again can give others. Use a server that returns them, such as vLLM."
            )
        if logprobs is None or len(logprobs) != len(ids) or None in logprobs:
            raise InputError(
                f"the server {self.url} does not return one log-prob per sampled token, by which PPO checks that it "
                "samples from the policy. Use a server that returns them, such as vLLM."
            )
        return ids, logprobs

    # ---- HTTP ------------------------------------------------------------------------------------------------------

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self._request(path, json.dumps(body).encode())

    def _request(self, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.api_key_env]}"
        request = urllib.request.Request(self.url + path, body, headers)
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    return _parsed(answer.read())
            except urllib.error.HTTPError as error:
                message = error.read().decode(errors="replace").strip()
                kind = _NotFoundError if error.code in (404, 405) else InputError
                raise kind(f"the server {request.full_url} answered {error.code}: {message:.1000}") from error
            except (OSError, http.client.HTTPException) as error:
                last = error
                if isinstance(getattr(error, "reason", error), TimeoutError):
                    raise InputError(
                        f"the server {request.full_url} gave no answer within {self.timeout} seconds (`timeout`)."
                    ) from error
        raise InputError(
            f"the server {request.full_url} cannot be reached ({last}), after {self.retries + 1} attempts. Is it up, "
            "and is `url` right?"
        ) from last


class _NotFoundError(InputError):
    """The server does not have a path, or what was named there."""


def _parsed(text: bytes) -> Any:
    """JSON, or text: vLLM answers some requests with a sentence or with nothing."""
    try:
        return json.loads(text)
    except ValueError:
        return text.decode(errors="replace")
