"""Who samples: the policy under settings that do not bend its distribution, an engine of one's own, TRL's vLLM."""

import inspect
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_ppo_trainer import EOS, PROMPTS, TOKENIZER, assert_equal, gpt2, lengths, logged, make, policy, weights
from transformers import AutoModelForCausalLM
from trl.generation import vllm_generation

from hf_instructgpt.errors import InputError
from hf_instructgpt.models.surgery import independent_copy
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.sampling import generate
from hf_instructgpt.sampling.vllm import VLLMGenerator, whole_weights


class Engine:
    """An engine that answers each prompt with given tokens and remembers what it was asked."""

    def __init__(self, answer=lambda prompt: [5, 6, EOS]):
        self.answer, self.synced, self.asked = answer, [], []

    def sync_weights(self, policy):
        self.synced.append({name: p.detach().clone() for name, p in policy.named_parameters()})

    def generate(self, prompt_ids, *, generation_config):
        self.asked.append((prompt_ids, generation_config.max_new_tokens, generation_config.temperature))
        return [self.answer(prompt) for prompt in prompt_ids]


# ---- Settings of `generate` ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 50),
        ("top_p", 0.9),
        ("min_p", 0.1),
        ("typical_p", 0.9),
        ("repetition_penalty", 1.2),
        ("no_repeat_ngram_size", 3),
        ("min_new_tokens", 4),
        ("bad_words_ids", [[5]]),
        ("num_beams", 4),
        ("do_sample", False),
        ("sequence_bias", [[[5], 1.0]]),
    ],
)
def test_a_setting_that_bends_the_distribution_is_refused_with_the_reason(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}` = .* is not supported.*another distribution"):
        PPOConfig(output_dir=str(tmp_path), generation_kwargs={name: value})


@pytest.mark.parametrize(
    ("name", "option"),
    [("temperature", "temperature"), ("max_new_tokens", "max_completion_length"), ("eos_token_id", "stop_token_ids")],
)
def test_a_setting_that_ppo_has_an_option_for_names_it(tmp_path, name, option):
    with pytest.raises(ValueError, match=f"set `{name}` with PPO's own option `{option}`"):
        PPOConfig(output_dir=str(tmp_path), generation_kwargs={name: 1})


def test_harmless_and_neutral_settings_reach_the_sampler(tmp_path):
    settings = {"cache_implementation": "static", "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
    trainer = make(tmp_path, generation_kwargs=settings, max_steps=1)
    assert trainer.generation_config.cache_implementation == "static"
    trainer.train()
    assert logged(trainer, "kl")[0] == 0.0
    as_json = PPOConfig(output_dir=str(tmp_path), generation_kwargs='{"use_cache": false}')
    assert as_json.generation_kwargs == {"use_cache": False}
    with pytest.raises(ValueError, match="`top_k` = 5 is not supported"):
        PPOConfig(output_dir=str(tmp_path), generation_kwargs='{"top_k": 5}')


@pytest.mark.parametrize("missing_eos_penalty", [0.0, 7.0])
def test_more_stop_tokens_end_responses_and_are_no_missing_end(tmp_path, missing_eos_penalty):
    model = policy(eos_bias=-100.0)
    with torch.no_grad():
        model.lm_head.bias[3] += 3.0
    options = {"stop_token_ids": [3, 4], "missing_eos_penalty": missing_eos_penalty, "max_steps": 1}
    trainer = make(tmp_path, model, lambda completions, **_: [0.0] * len(completions), **options)
    assert trainer.generation_config.eos_token_id == [3, 4, EOS]
    rollout = trainer._roll_out(list(PROMPTS) * 4, num_generations=1)
    ended = torch.tensor([ids[mask][-1].item() in (3, 4) for ids, mask in zip(*rollout.sequences[2:], strict=True)])
    assert 0 < ended.sum() < len(ended)
    for ids, mask in zip(*rollout.sequences[2:], strict=True):
        assert not torch.isin(ids[mask][:-1], torch.tensor([3, 4])).any()
    assert rollout.scores.tolist() == torch.where(ended, 0.0, -missing_eos_penalty).tolist()
    trainer.save_model()  # what was trained to stop there stops there for everyone
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == [3, 4, EOS]


# ---- An engine -----------------------------------------------------------------------------------------------------


def test_an_engine_s_responses_are_trained_on_and_it_gets_new_weights_before_each_rollout(tmp_path):
    engine = Engine()
    trainer = make(tmp_path, generator=engine, max_steps=4, temperature=0.5)
    trainer.model.policy.generate = None  # is not asked
    start = weights(trainer.model.policy)
    trainer.train()
    assert len(engine.asked) == len(engine.synced) == 2
    prompts, longest, temperature = engine.asked[0]
    assert (longest, temperature) == (6, 0.5)
    assert {tuple(row) for row in prompts} <= {tuple(TOKENIZER(text)["input_ids"]) for text in PROMPTS["prompt"]}
    assert trainer._rollout.response_ids.tolist() == [[5, 6, EOS]] * 4
    assert all(start[name].equal(tensor) for name, tensor in engine.synced[0].items())
    assert not engine.synced[1]["lm_head.weight"].equal(start["lm_head.weight"])
    assert logged(trainer, "approx_kl")[0] == 0.0
    trainer.evaluate(PROMPTS)
    assert len(engine.synced) == 3 and len(engine.asked) == 3  # once for the evaluation, whatever it asks


def test_what_an_engine_says_behind_a_stop_token_is_not_real(tmp_path):
    trainer = make(tmp_path, generator=Engine(lambda prompt: [5, EOS, 7, 8] if len(prompt) > 1 else [5] * 6))
    rollout = trainer._roll_out(list(PROMPTS), num_generations=1)
    real = [2 if len(text) > 1 else 6 for text in PROMPTS["prompt"]]
    assert rollout.response_mask.sum(-1).tolist() == real == rollout.scores.tolist()


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Engine(lambda prompt: []), "Engine: response 0 has 0 tokens, not 1 to 6"),
        (Engine(lambda prompt: [5] * 7), "Engine: response 0 has 7 tokens, not 1 to 6"),
    ],
)
def test_an_engine_s_bad_responses_are_named(tmp_path, engine, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path, generator=engine, max_steps=1).train()


def test_an_engine_that_keeps_the_stop_tokens_to_itself_is_told_so(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(generate.logger, "warning_once", told.append)
    for answer in ([5, 5, 5, 5, 5, 5], [5, EOS], [5, 5]):
        assert told == []
        make(tmp_path, generator=Engine(lambda prompt, answer=answer: answer), max_steps=1).train()
    assert "no response shorter than 6 tokens ends with a stop token" in told[0]


def test_an_engine_that_loses_a_prompt_is_named(tmp_path):
    engine = Engine()
    engine.generate = lambda prompt_ids, **_: [[5, EOS]]
    with pytest.raises(InputError, match="Engine returned 1 responses for 4 prompts"):
        make(tmp_path, generator=engine, max_steps=1).train()


# ---- TRL's vLLM engine, where vLLM is not installed ----------------------------------------------------------------


class FakeLLM:
    """The methods of vLLM's `LLM` by which weights are given; tests/real_vllm.py compares them with the real ones."""

    def __init__(self):
        self.calls, self.weights = [], {}

    def wake_up(self, tags=None):
        self.calls.append(("wake_up", tags))

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None):
        assert method == "reload_weights" and timeout is None and args == () and list(kwargs) == ["weights_iterator"]
        rows = list(kwargs["weights_iterator"])
        self.calls.append((method, len(rows)))
        self.weights = {name: tensor.clone() for name, tensor in rows}
        assert len(self.weights) == len(rows)

    def reset_prefix_cache(self):
        self.calls.append(("reset_prefix_cache", None))


class FakeVLLM:
    """The arguments and the methods of TRL's `VLLMGeneration`; it answers with the end-of-text token."""

    OTHERS = ("temperature", "max_completion_length", "logprobs", "generation_kwargs", "gpu_memory_utilization")

    def __init__(self, model, accelerator, processing_class, mode="colocate", enable_sleep_mode=False, **kwargs):
        if unknown := kwargs.keys() - self.OTHERS:
            raise TypeError(f"unexpected keyword argument {unknown.pop()!r}")
        self.model, self.mode, self.enable_sleep_mode, self.arguments = model, mode, enable_sleep_mode, kwargs
        self._llm_weights_sleeping = enable_sleep_mode
        self.num_syncs, self.llm = 0, FakeLLM()

    def sync_weights(self):
        """TRL's own, which a server needs."""
        self.num_syncs += 1

    def generate(self, prompts, images, num_generations):
        assert images is None and num_generations == 1
        if self._llm_weights_sleeping:
            self.sync_weights()
        self._llm_weights_sleeping = self.enable_sleep_mode
        logprobs = [[[None], [None]] for _ in prompts]  # what vLLM could not compute: these tokens were not sampled
        return prompts, [[9, EOS] for _ in prompts], logprobs, [[[9], [EOS]] for _ in prompts]


@pytest.fixture
def fake_vllm(monkeypatch):
    monkeypatch.setattr(vllm_generation, "VLLMGeneration", FakeVLLM)


def named(model):
    model.name_or_path = "a/policy"  # by which the engine would load it
    return model


def test_vllm_gets_the_policy_and_ppo_s_sampling_options(tmp_path, fake_vllm):
    kwargs = {"mode": "server", "gpu_memory_utilization": 0.3}
    options = {"use_vllm": True, "vllm_kwargs": kwargs, "temperature": 0.7, "stop_token_ids": [3]}
    trainer = make(tmp_path, max_steps=4, **options)
    engine = trainer.generator.engine
    assert isinstance(trainer.generator, VLLMGenerator)
    assert engine.model is trainer.model.policy  # bare: the engine goes by the names of its parameters
    assert engine.arguments == {
        "gpu_memory_utilization": 0.3,
        "temperature": 0.7,
        "max_completion_length": 6,
        "logprobs": 0,
        "generation_kwargs": {"stop_token_ids": [3, EOS]},
    }
    trainer.train()
    assert engine.num_syncs == 2 and engine.llm.calls == []  # TRL sends weights to a server
    assert trainer._rollout.response_ids.tolist() == [[9, EOS]] * 4
    assert trainer._rollout.importance_weights.eq(1).all()  # the log-probs are not known
    answer = [[1, 2]], [[9, EOS]], [[[-0.5], [None]]], [[[9], [EOS]]]
    trainer.generator.engine.generate = lambda **_: answer
    assert trainer.generator.generate([[1, 2]], generation_config=None) == [[9, EOS]]
    assert trainer.generator.last_logprobs == [[-0.5, pytest.approx(math.nan, nan_ok=True)]]
    with pytest.raises(InputError, match=r"`vllm_kwargs`: .*gpu_memory"):
        make(tmp_path, use_vllm=True, vllm_kwargs={"mode": "server", "gpu_memory": 1})
    with pytest.raises(ValueError, match=r"`vllm_kwargs`: `top_p` = 0\.5 is not supported"):
        make(tmp_path, use_vllm=True, vllm_kwargs={"top_p": 0.5})
    with pytest.raises(ValueError, match="`vllm_kwargs`: set `temperature` with PPO's own option"):
        make(tmp_path, use_vllm=True, vllm_kwargs={"temperature": 0.5})
    with pytest.raises(InputError, match="choose one engine"):
        make(tmp_path, use_vllm=True, generator=Engine())
    with pytest.raises(InputError, match=r"made in memory has none.*pass the folder"):
        make(tmp_path, use_vllm=True)
    with pytest.raises(InputError, match="on a CPU: vLLM would keep the old output embedding"):
        make(tmp_path, named(gpt2(tie_word_embeddings=True)), use_vllm=True)


def test_vllm_in_the_process_gets_the_weights_and_forgets_what_it_computed_with_the_old_ones(tmp_path, fake_vllm):
    trainer = make(tmp_path, named(policy()), use_vllm=True, max_steps=4)
    start, engine = weights(trainer.model.policy), trainer.generator.engine
    trainer.train()
    num_weights = len(list(trainer.model.policy.parameters()))
    assert engine.llm.calls == [("reload_weights", num_weights), ("reset_prefix_cache", None)] * 2
    assert engine.num_syncs == 0
    assert not engine.llm.weights["lm_head.weight"].equal(start["lm_head.weight"])
    trainer.generator.sync_weights(trainer.model.policy)
    for name, p in trainer.model.policy.named_parameters():
        assert engine.llm.weights[name].equal(p), name


def test_vllm_that_sleeps_is_woken_and_gets_the_weights_again(tmp_path, fake_vllm):
    options = {"use_vllm": True, "vllm_kwargs": {"enable_sleep_mode": True}}
    trainer = make(tmp_path, named(policy()), max_steps=2, **options)
    trainer.train()
    calls, new = trainer.generator.engine.llm.calls, ["wake_up", "reload_weights", "reset_prefix_cache"]
    assert [name for name, _ in calls] == new  # once for the rollout, not again by TRL
    assert calls[0] == ("wake_up", ["weights"])
    trainer.evaluate(PROMPTS)  # of more than one batch: TRL wakes it for the later ones
    assert [name for name, _ in calls] == new * (1 + -(-len(PROMPTS) // trainer.args.eval_batch_size))


LORA = {
    "linear layers": {"target_modules": "all-linear"},
    "an embedding, a whole layer": {"target_modules": ["wte", "c_attn"], "modules_to_save": ["lm_head"]},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "biases": {"target_modules": ["c_attn"], "bias": "lora_only"},
    "tied embeddings": {"target_modules": ["c_attn"]},
}


@pytest.mark.parametrize("kind", LORA)
def test_an_adapter_is_merged_layer_by_layer_to_the_same_bits(kind):
    model = get_peft_model(gpt2(tie_word_embeddings=kind == "tied embeddings"), LoraConfig(r=2, **LORA[kind]))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_()
    before = weights(model)
    expected, given = dict(independent_copy(model).named_parameters()), list(whole_weights(model))
    assert [name for name, _ in given] == list(expected)
    assert all(tensor.equal(expected[name]) for name, tensor in given)
    assert_equal(weights(model), before)


def test_the_fake_has_the_arguments_of_the_real_one():
    real = vllm_generation.VLLMGeneration
    for method in ("__init__", "sync_weights", "generate"):
        ours, theirs = (inspect.signature(getattr(cls, method)).parameters for cls in (FakeVLLM, real))
        shared = ours.keys() - {"kwargs"}
        assert all(theirs[name].default == ours[name].default for name in shared), method
        assert {name for name, p in theirs.items() if p.default is p.empty} <= shared, method
    assert inspect.signature(real.__init__).parameters.keys() >= set(FakeVLLM.OTHERS)
    source = inspect.getsource(real)
    for name in ("model", "mode", "llm", "enable_sleep_mode", "_llm_weights_sleeping"):
        assert f"self.{name} = " in source
    assert "self.sync_weights()" in source  # what it calls to wake an engine


def test_without_vllm_the_error_says_so(tmp_path):
    with pytest.raises(InputError, match="`use_vllm` needs vLLM, which is not installed"):
        make(tmp_path, named(policy()), lengths, use_vllm=True)


def test_an_engine_gets_the_weights_that_are_sampled_from_after_they_were_changed_back(tmp_path):
    engine = Engine()
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    scores = iter(range(100, 0, -1))
    trainer = make(
        tmp_path,
        reward_funcs=lambda completions, **_: [float(next(scores))] * len(completions),
        generator=engine,
        eval_dataset=PROMPTS.select([0]),
        load_best_model_at_end=True,
        **options,
    )
    trainer.train()  # ends with the weights of step 1
    trainer.evaluate()
    assert all(engine.synced[-1][name].equal(p) for name, p in trainer.model.policy.named_parameters())
    num_syncs, weights_then = len(engine.synced), weights(trainer.model.policy)
    trainer.train()  # its steps count from 0 again
    assert all(engine.synced[num_syncs][name].equal(tensor) for name, tensor in weights_then.items())
