"""A server that samples in the policy's place: what it is asked, how it gets the weights, and what is refused."""

import json
import logging
import os
import sys
import time
from pathlib import Path

import pytest
import test_ppo_distributed
import torch
from completions_server import serving
from peft import LoraConfig
from test_ppo_sharded import RECIPES, allow_fsdp_on_cpus
from test_ppo_trainer import EOS, PROMPTS, TOKENIZER, assert_equal, logged, make, policy, weights

from hf_instructgpt.cli import main
from hf_instructgpt.errors import InputError
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.sampling.server import ServerGenerator

LORA = LoraConfig(r=4, target_modules="all-linear", exclude_modules=["lm_head"], init_lora_weights=False)


@pytest.fixture
def server():
    with serving(policy(seed=5)) as server:
        yield server


def test_eight_steps_are_trained_on_what_the_server_samples_from_the_policy(tmp_path, server):
    model = policy(dropout=0.0)
    model.generate = None  # is not asked
    options = {"temperature": 0.7, "stop_token_ids": [3], "max_steps": 8}
    trainer = make(tmp_path, model, generator=ServerGenerator(server.url, concurrency=3), **options)
    start = weights(trainer.model.policy)
    trainer.train()
    assert trainer.state.global_step == 8 and not torch.equal(start["lm_head.weight"], model.lm_head.weight)
    assert len(server.asked("/collective_rpc")) == len(server.asked("/reset_prefix_cache")) == 4
    assert max(logged(trainer, "sampling_logprob_diff")) < 1e-5
    requests = server.asked("/v1/completions")
    assert len(requests) == 16 and len({body["seed"] for body in requests}) == 16
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in requests} == {("tiny", 0.7, 6)}
    assert {(*body["stop_token_ids"],) for body in requests} == {(3, EOS)}
    trainer.evaluate(trainer.train_dataset)
    assert_equal(weights(server.model), weights(model))


def test_weights_reach_a_server_with_sglang_s_path(tmp_path):
    with serving(policy(seed=5), paths=["/update_weights_from_disk"]) as server:
        trainer = make(tmp_path, generator=ServerGenerator(f"{server.url}/v1/", model="other"), max_steps=4)
        trainer.train()
        assert len(server.asked("/update_weights_from_disk")) == 2 and not server.asked("/collective_rpc")
        assert {body["model"] for body in server.asked("/v1/completions")} == {"other"}
        assert max(logged(trainer, "sampling_logprob_diff")) < 1e-5


def test_a_lora_policy_is_synced_as_a_merged_model(tmp_path, server):
    folder = tmp_path / "shared"
    generator = ServerGenerator(server.url, folder=str(folder))
    trainer = make(tmp_path, generator=generator, peft_config=LORA, max_steps=4)
    trainer.train()
    assert max(logged(trainer, "sampling_logprob_diff")) < 1e-5
    (body, _) = server.asked("/collective_rpc")
    assert body["kwargs"]["weights_path"].startswith(str(folder))


def test_a_lora_policy_is_synced_as_an_adapter(tmp_path):
    with serving(policy(), paths=["/v1/load_lora_adapter", "/v1/unload_lora_adapter"]) as server:
        generator = ServerGenerator(server.url, sync="adapter")
        trainer = make(tmp_path, generator=generator, peft_config=LORA, max_steps=4)
        trainer.train()
        assert max(logged(trainer, "sampling_logprob_diff")) < 1e-5
        first, second = (body["lora_name"] for body in server.asked("/v1/load_lora_adapter"))
        assert (
            first != second
            and [body["model"] for body in server.asked("/v1/completions")] == [first] * 4 + [second] * 4
        )
        assert server.asked("/v1/unload_lora_adapter") == [{"lora_name": first}]
        with pytest.raises(InputError, match="`sync` = 'adapter' needs a policy with a LoRA adapter"):
            make(tmp_path, generator=generator, max_steps=1).train()
        server.paths.remove("/v1/load_lora_adapter")
        with pytest.raises(
            InputError, match=r"/v1/load_lora_adapter answered 404: .*\s*Start vLLM with `--enable-lora`"
        ):
            trainer.train()


def test_a_run_that_is_resumed_ends_with_the_same_bytes(tmp_path, server):
    def run(folder, max_steps, resume=None):
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": max_steps}
        trainer = make(tmp_path / folder, generator=ServerGenerator(server.url), **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run("whole", 6)
    for max_steps in (3, 4):  # in the middle of a rollout, and at its end
        run("cut", max_steps)
        assert_equal(weights(run("cut", 6, resume=True).model), weights(whole.model))


def test_the_command_line_trains_on_a_server(tmp_path, server, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    policy(dropout=0.0).save_pretrained("policy")
    TOKENIZER.save_pretrained("policy")
    Path("rewards.py").write_text("def length(completions, **_): return [float(len(text)) for text in completions]\n")
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    Path("ppo.yaml").write_text(
        "model_name_or_path: policy\ndataset_name: prompts.jsonl\nreward_funcs: [rewards.length]\nmax_steps: 2\n"
        "max_completion_length: 6\nnum_ppo_epochs: 1\nlogging_steps: 1\nreport_to: none\noutput_dir: out\n"
        "per_device_train_batch_size: 2\n"
        f"generator: {{url: {server.url}, concurrency: 2}}\n"
    )
    assert main(["ppo", "--config", "ppo.yaml"]) == 0
    assert len(server.asked("/v1/completions")) == 4
    flags = ["--output_dir", "out-2", "--generator"]
    assert main(["ppo", "--config", "ppo.yaml", *flags, json.dumps({"url": server.url, "model": "flag"})]) == 0
    assert {body["model"] for body in server.asked("/v1/completions")[4:]} == {"flag"}
    capsys.readouterr()
    assert main(["ppo", "--config", "ppo.yaml", *flags, '{"modle": "a", "url": "http://a"}']) == 2
    assert "`generator`: unknown keys modle" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_sample_their_own_prompts_from_one_server(tmp_path, server, kind):
    command = ["accelerate.commands.launch", "--config_file", str(RECIPES / "fsdp2.yaml"), "--main_process_port", "0"]
    if kind == "ddp":
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [__file__, str(tmp_path), server.url, kind]
    left, right = test_ppo_distributed.launch(
        command, tmp_path, {"ACCELERATE_USE_CPU": "true"} if kind == "ddp" else {}
    )
    assert len(server.asked("/collective_rpc")) == 2 and len(server.asked("/v1/completions")) == 8
    for rank in (left, right):
        assert len(rank["differences"]) == 2 and max(rank["differences"]) < 1e-5
        assert rank["refused"].startswith(f"the server {server.url}/nowhere cannot take new weights")
    assert left["responses"] != right["responses"]


def run_on_server(folder, url, kind):
    """What one of two processes does."""
    options = {"use_cpu": kind == "ddp", "per_device_train_batch_size": 2, "max_steps": 4}
    if kind == "fsdp2":
        allow_fsdp_on_cpus()
    trainer = test_ppo_distributed.make(folder / "out", generator={"url": url}, **options)
    trainer.train()
    found = {"differences": logged(trainer, "sampling_logprob_diff")}
    found["responses"] = trainer._rollout.response_ids.tolist()
    # The main process alone finds no server, and the other one stops too.
    trainer.generator.url += "/nowhere"
    trainer._synced_step = None
    with pytest.raises(InputError) as error:
        trainer.evaluate(PROMPTS)
    found["refused"] = str(error.value)
    torch.save(found, folder / f"{os.environ['RANK']}.pt")


# ---- A server that does not follow ---------------------------------------------------------------------------------


def test_a_server_with_other_weights_is_refused_at_the_first_rollout(tmp_path, server):
    server.answers["/collective_rpc"] = lambda body: (200, {"results": [None]})
    trainer = make(tmp_path, generator=ServerGenerator(server.url), max_steps=1)
    with pytest.raises(
        InputError, match=r"ServerGenerator does not sample from the policy\. .*differ .*nats per token"
    ):
        trainer.train()
    with pytest.raises(InputError, match="does not sample from the policy"):
        make(tmp_path, generator=ServerGenerator(server.url)).evaluate(trainer.train_dataset)


def test_a_server_that_forgets_its_sync_later_is_warned_of_once(tmp_path, server, caplog):
    taken = iter([True])

    def forgetful(body):
        if next(taken, False):
            server.answer("/collective_rpc", body)
        return 200, {"results": [None]}

    server.answers["/collective_rpc"] = forgetful
    trainer = make(tmp_path, generator=ServerGenerator(server.url), max_steps=8, learning_rate=0.1)
    logging.getLogger("transformers").propagate = True
    trainer.train()
    logging.getLogger("transformers").propagate = False
    assert caplog.text.count("does not sample from the policy") == 1
    differences = logged(trainer, "sampling_logprob_diff")
    assert differences[0] < 1e-5 and differences[-1] > 0.1


def test_a_server_that_cannot_be_synced_is_refused(tmp_path):
    with serving(policy(), paths=[]) as server:
        with pytest.raises(InputError, match=f"{server.url} cannot take new weights: .*VLLM_SERVER_DEV_MODE=1"):
            make(tmp_path, generator=ServerGenerator(server.url), max_steps=1).train()
        assert server.asked("/v1/completions") == []


# ---- Answers that cannot be used -----------------------------------------------------------------------------------


def choice(**parts):
    return lambda body: (200, {"choices": [{"text": "a", **parts}]})


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/v1/completions", choice(), "returns no token ids"),
        ("/v1/completions", choice(token_ids=[5]), "does not return one log-prob per sampled token"),
        (
            "/v1/completions",
            choice(token_ids=[5], logprobs={"token_logprobs": [-1.0, -1.0]}),
            "does not return one log",
        ),
        (
            "/v1/completions",
            choice(token_ids=[5], logprobs={"token_logprobs": [None]}),
            "does not return one log-prob",
        ),
        ("/v1/completions", choice(token_ids=[], logprobs={"token_logprobs": []}), "response 0 has 0 tokens"),
        ("/v1/completions", lambda body: (200, "hello"), "gave an answer without `choices`: 'hello'"),
        (
            "/v1/completions",
            lambda body: (400, {"error": "too long"}),
            'completions answered 400: {"error": "too long"}',
        ),
        ("/collective_rpc", lambda body: (500, "no such file"), 'collective_rpc answered 500: "no such file"'),
        ("/reset_prefix_cache", lambda body: (200, {"success": False}), "its prefix cache could not be reset"),
        ("/reset_prefix_cache", lambda body: (404, ""), "reset_prefix_cache answered 404"),
        ("/v1/models", lambda body: (200, {"data": []}), "lists no model; name one by `model`"),
    ],
)
def test_an_answer_that_cannot_be_used_is_named(tmp_path, server, path, answer, message):
    server.answers[path] = answer
    with pytest.raises(InputError, match=message) as raised:
        make(tmp_path, generator=ServerGenerator(server.url), max_steps=1).train()
    assert server.url in str(raised.value) or "0 tokens" in message


def test_a_connection_that_breaks_is_tried_again_up_to_a_limit(tmp_path, server, monkeypatch):
    waited, broken = [], iter([True, True])
    monkeypatch.setattr(time, "sleep", waited.append)
    server.answers["/v1/models"] = lambda body: (None, None) if next(broken, False) else (200, {"data": [{"id": "a"}]})
    make(tmp_path, generator=ServerGenerator(server.url), max_steps=1).train()
    assert waited == [1, 2] and len(server.asked("/v1/models")) == 3
    server.answers["/v1/models"] = lambda body: (None, None)
    with pytest.raises(InputError, match=f"{server.url}/v1/models cannot be reached .* after 2 attempts"):
        make(tmp_path, generator=ServerGenerator(server.url, retries=1), max_steps=1).train()
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/update_weights_from_disk cannot be reached"):
        make(tmp_path, generator=ServerGenerator("http://127.0.0.1:9"), max_steps=1).train()


def test_a_server_that_is_silent_is_given_up_after_the_timeout(tmp_path, server):
    server.answers["/v1/models"] = lambda body: (time.sleep(0.5), None)
    with pytest.raises(InputError, match=r"models gave no answer within 0\.1 seconds \(`timeout`\)"):
        make(tmp_path, generator=ServerGenerator(server.url, timeout=0.1), max_steps=1).train()


# ---- Options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://a", "modle": "b"}, "`generator`: unknown keys modle. It may have url, model, sync"),
        ({"model": "a"}, "`generator` must be a mapping with a server's `url`"),
        ("http://a", "`generator` must be a mapping with a server's `url`, or with `rollouts` alone, not 'http://a'"),
        ('{"url": "localhost:8000"}', "`url` must begin with http:// or https://, not 'localhost:8000'"),
        ({"url": "http://a", "sync": "none"}, "`sync` must be 'folder' or 'adapter', not 'none'"),
        ({"url": "http://a", "concurrency": 0}, "`concurrency` must be 1 or more"),
        ({"url": "http://a", "timeout": "1"}, "`timeout` must be above 0, not '1'"),
        ({"url": "http://a", "retries": -1}, "`retries` must be 0 or more"),
        ({"url": "http://a", "api_key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY .* is not set"),
    ],
)
def test_options_that_cannot_be_used_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, generator=options)


def test_engines_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="`generator` and `use_vllm`: choose one engine"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, generator={"url": "http://a"}, use_vllm=True)


if __name__ == "__main__":
    run_on_server(Path(sys.argv[1]), *sys.argv[2:])
    test_ppo_distributed.leave()
