"""PPO with every causal language model of the installed transformers that can be built small.

`python tests/test_families.py --write` writes recipes/ppo/families.md, which says what does not work and why. The test
holds the page to the truth: a family that the page does not name must pass, one that it names must fail as it says.
`python tests/test_families.py llama gpt2` prints what becomes of these two.
"""

import contextlib
import re
import sys
import tempfile
import textwrap
import time
import warnings
from datetime import date
from pathlib import Path

import peft
import pytest
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from peft import LoraConfig
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.models.forward import model_inputs
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.critic import load_value_model
from hf_instructgpt.ppo.trainer import PPOTrainer
from hf_instructgpt.sampling import policy_sampler
from hf_instructgpt.sampling.generate import sampling_config
from hf_instructgpt.text import pad_rows

PAGE = Path(__file__).parents[1] / "recipes" / "ppo" / "families.md"
# The padding token is not the last one of the special tokens, nor 0: its embedding is that of a token like any other.
TOKENS = ["<unk>", *"abcdefgh", "<pad>", "<bos>", "<eos>"]
TOKENIZER = CharGPTTokenizer(vocab={token: i for i, token in enumerate(TOKENS)})
VOCAB, PAD, BOS, EOS = 24, *(TOKENS.index(token) for token in ("<pad>", "<bos>", "<eos>"))
PROMPTS = [{"prompt": text} for text in ("a", "bcd", "ab", "dcbaefgh", "cc", "hgf", "abcabc", "bbbbb")]

# ---- Small models --------------------------------------------------------------------------------------------------

# What an attribute of a configuration becomes, under its own name or the usual one (`attribute_map`).
GROUPS = {
    VOCAB: "vocab_size unpadded_vocab_size vocab_size_per_layer_input",
    1: "n_group topk_group num_expert_group mamba_n_groups n_groups attn_layer_offset expert_layer_offset",
    2: "num_hidden_layers num_layers num_blocks encoder_layers decoder_layers num_key_value_heads "
    "full_attention_interval attn_layer_period expert_layer_period num_experts_per_tok moe_k moe_topk zero_expert_num "
    "n_mamba_heads mamba_expand linear_num_key_heads",
    4: "num_attention_heads encoder_attention_heads decoder_attention_heads rotary_dim patch_size num_experts "
    "num_local_experts n_routed_experts moe_num_experts mamba_n_heads mamba_num_heads linear_num_value_heads "
    "linear_num_heads",
    8: "head_dim image_size q_lora_rank kv_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim linear_head_dim "
    "hidden_size_per_layer_input pronunciation_embed_dim shape_embed_dim linear_key_head_dim linear_value_head_dim "
    "mamba_d_state state_size ssm_state_size chunk_size mamba_chunk_size",
    16: "qk_head_dim projection_dim moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
    "mamba_d_head mamba_head_dim",
    32: "hidden_size d_model embedding_size word_embed_proj_dim",
    40: "shape_vocab_size",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size dim_ff dff d_inner",
    64: "mamba_d_ssm",
    128: "max_position_embeddings",
}
SIZES = {name: size for size, names in GROUPS.items() for name in names.split()}
SIZES |= {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "is_decoder": True, "initializer_range": 0.2}
# These are set although they are None unless somebody sets them.
SET_ANYWAY = ("pad_token_id", "bos_token_id", "eos_token_id", "num_key_value_heads", "head_dim")
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# Where the table alone makes a model that is none, or one without the layers that the family is known for.
OVERRIDES = {
    **dict.fromkeys(("bailing_hybrid", "kimi_linear", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), HYBRID),
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {**ROPE, "mrope_section": [2, 1, 1]}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "attn_pdrop": 0.1, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "diffllama": {"attention_dropout": 0.0},
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "dots3_note_text": {"per_layer_config": {}},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0, 0.0],
        "laurel_rank": 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hy_v4": {"index_topk": 128},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 1,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 128,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "lru_width": 32,
        "attention_window_size": 16,
        "num_key_value_heads": 2,
    },
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"], "attention_head_size": 8},
    "xlstm": {"hidden_size": 128, "num_heads": 4},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
# What cannot be built small by this, or is no language model by itself.
NOT_TRIED = {
    "blt": "reads bytes through a patcher that must be trained before",
    "dots3_note": "its text model is `dots3_note_text`",
    "fuyu": "builds its text model from a configuration of another family",
    "gemma3n": "needs timm; its text model is `gemma3n_text`",
    "gemma4_assistant": "drafts tokens from another model's cache, and is no model by itself",
    "gemma4_unified_assistant": "drafts tokens from another model's cache, and is no model by itself",
    "musicgen": "writes audio codes, for several codebooks at a time",
    "musicgen_melody": "writes audio codes, for several codebooks at a time",
}


def small_config(cls: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A configuration with small sizes, and with all noise of training, which PPO must switch off."""
    default = cls()
    usual = {own: name for name, own in (cls.attribute_map or {}).items()}
    chosen = {}
    for name, value in vars(default).items():
        size = SIZES.get(name, SIZES.get(usual.get(name)))
        if size is not None and (value is not None or {name, usual.get(name)} & set(SET_ANYWAY)):
            chosen[name] = size
        elif re.search("drop|jitter", name) and isinstance(value, float):
            chosen[name] = 0.1
    for name in cls.sub_configs or {}:
        if getattr(default, name, None) is not None:
            chosen[name] = small_config(type(getattr(default, name)))
    if "qk_rope_head_dim" in chosen:  # latent attention has as many keys as queries, and their width is made of others
        chosen = {**chosen, "num_key_value_heads": 4}
        chosen.pop("head_dim", None)
    return cls(**{**chosen, **OVERRIDES.get(cls.model_type, {})})


def small_model(model_type: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(CONFIG_MAPPING[model_type]), dtype=torch.float32)
    with torch.no_grad():
        # A new model has 0 there, a trained one has not: 0 would hide that padding is read.
        model.get_input_embeddings().weight[PAD].normal_(std=0.5)
    return model


def families() -> list[str]:
    """Model types, one for each class of configurations."""
    known = CONFIG_MAPPING_NAMES
    names = {known[name]: name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in known}
    return sorted(names.values())


# ---- What must hold ------------------------------------------------------------------------------------------------


def make(model: PreTrainedModel, folder: str, **options) -> PPOTrainer:
    taken = {name: options.pop(name) for name in ("value_model", "peft_config") if name in options}
    args = {"per_device_train_batch_size": 8, "max_completion_length": 6, "num_ppo_epochs": 2, "max_steps": 2}
    args |= {"stop_token_ids": [1, 2, 3, 4]}
    args |= {"learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "seed": 1}
    args |= {"output_dir": folder, "use_cpu": True, "report_to": [], "disable_tqdm": True}
    return PPOTrainer(
        model,
        lambda completion_ids, **_: [float(ids.count(1)) - 0.3 * len(ids) for ids in completion_ids],
        args=PPOConfig(**{**args, **options}),
        train_dataset=Dataset.from_list(PROMPTS),
        processing_class=TOKENIZER,
        **taken,
    )


def alone(model: PreTrainedModel, row: list[int] | torch.Tensor) -> torch.Tensor:
    """Log-probs `(T, V)` of the tokens behind each one of a row, as anybody would ask for them: by the ids alone."""
    return model(input_ids=torch.as_tensor(row)[None]).logits[0].float().log_softmax(-1)


@torch.no_grad()
def check_rollout(trainer: PPOTrainer) -> None:
    """Log-probs of a padded rollout are those of each row alone."""
    rollout = trainer._roll_out(PROMPTS, num_generations=1)
    policy, worst = trainer.model.policy.eval(), 0.0
    for prompt, prompt_mask, response, mask, old in zip(*rollout.sequences, rollout.old_logprobs, strict=True):
        ids = response[mask]
        logprobs = alone(policy, torch.cat([prompt[prompt_mask], ids]))[-len(ids) - 1 : -1]
        worst = max(worst, (logprobs.gather(-1, ids[:, None])[:, 0] - old[mask]).abs().max().item())
    assert worst < 1e-3, f"log-probs of the rollout against each row alone: off by {worst:.2g} nats"


@torch.no_grad()
def check_sampler(model: PreTrainedModel) -> None:
    """Both ways of the fast sampler, rows dropped in between, draw from what each row alone gives."""
    if not policy_sampler.can_sample(model.eval()):
        return
    rows, next_logits, at_a_time = (
        [[1, 2, 3, 4, 5, 6], [7], [8, 2], [3] * 4],
        policy_sampler._next_logits,
        policy_sampler.ROWS_AT_A_TIME,
    )
    config = sampling_config(model, TOKENIZER, max_new_tokens=4)
    config.eos_token_id = list(range(0, VOCAB, 2))  # half of the rows end at each token
    for way in ("_decode", "_decode_in_place") if model._can_compile_fullgraph else ("_decode",):
        seen = []
        sampler = policy_sampler.PolicySampler()
        sampler.sync_weights(model)
        policy_sampler._next_logits = lambda *args, seen=seen: seen.append(next_logits(*args)) or seen[-1]
        policy_sampler.ROWS_AT_A_TIME = 1
        try:
            responses, _ = getattr(sampler, way)(*pad_rows(rows, pad_token_id=PAD, side="left", device="cpu"), config)
        finally:
            policy_sampler._next_logits, policy_sampler.ROWS_AT_A_TIME = next_logits, at_a_time
        running = list(range(len(rows)))
        for step, logits in enumerate(seen):
            for number, i in enumerate(running):
                expected = alone(model, rows[i] + responses[i, :step].tolist())[-1]
                off = (logits[number].float().log_softmax(-1) - expected).abs().max().item()
                assert off < 1e-2, f"{way}: token {step + 1} is drawn from log-probs that are off by {off:.2g} nats"
            if way == "_decode":
                running = [i for i in running if responses[i, step] % 2]


def check_training(trainer: PPOTrainer) -> None:
    """The first ratio is 1, though the configuration has dropout, and all that is logged is finite."""
    trainer.train()
    logs = [logs for logs in trainer.state.log_history if "ratio" in logs]
    assert abs(logs[0]["ratio"] - 1) < (1e-2 if trainer.args.bf16 else 1e-5), f"the first ratio is {logs[0]['ratio']}"
    numbers = {name: x for log in logs for name, x in log.items() if isinstance(x, float)}
    assert all(torch.tensor(x).isfinite() for x in numbers.values()), numbers
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@torch.no_grad()
def check_saved(trainer: PPOTrainer, folder: str) -> None:
    """The Auto classes give the same logits, `load_value_model` the same values."""
    batch = [torch.tensor(x) for x in ([[1, 2], [3, 4]], [[True] * 2] * 2, [[5, 6, 7], [8, 1, 2]], [[True] * 3] * 2)]
    policy, critic = trainer.model.policy.eval(), trainer.model.value_model.eval()
    inputs = model_inputs(policy, *batch)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    off = (loaded(**inputs).logits - policy(**inputs).logits).abs().max().item()
    assert off < 1e-5, f"logits of the saved model, loaded by AutoModelForCausalLM, are off by {off:.2g}"
    values, inputs = load_value_model(folder).eval(), model_inputs(critic.backbone, *batch)
    off = (values(response_length=3, **inputs) - critic(response_length=3, **inputs)).abs().max().item()
    assert off < 1e-5, f"values of the saved critic, loaded by `load_value_model`, are off by {off:.2g}"


def check_resumed(trainer: PPOTrainer, model: PreTrainedModel, checkpoint: Path, folder: str) -> None:
    resumed = make(model, folder)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    differ = [
        name
        for (name, mine), its in zip(
            resumed.model.state_dict().items(), trainer.model.state_dict().values(), strict=True
        )
        if not mine.equal(its)
    ]
    assert not differ, f"a resumed run has other weights: {len(differ)}, such as {differ[0]}"


def check_default(model_type: str, folder: str) -> None:
    model = small_model(model_type)
    trainer = make(model, folder, save_strategy="steps", save_steps=1)
    check_rollout(trainer)
    check_sampler(model)
    check_training(trainer)
    check_saved(trainer, f"{folder}/checkpoint-2")
    check_resumed(trainer, small_model(model_type), Path(folder, "checkpoint-1"), f"{folder}/resumed")


def check_mode(model_type: str, folder: str, **options) -> None:
    """One step in half precision, with a critic on the policy's own trunk."""
    trainer = make(small_model(model_type), folder, bf16=True, value_model="shared", max_steps=1, **options)
    check_training(trainer)
    trainer.save_model(folder)


def outcome(check, model_type: str, **options) -> str:
    """What goes wrong, in one line; nothing where nothing does."""
    torch.set_default_dtype(torch.float32)  # a model that was left half made may have changed it
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(model_type, folder, **options)
        except Exception as error:
            message = str(error).split("\nassert ")[0]  # what pytest adds
            return f"{type(error).__name__}: {textwrap.shorten(message, 300)}"
    return ""


def try_family(model_type: str) -> dict[str, str]:
    """What does not work of a family, by mode."""
    failed = {"all": outcome(check_default, model_type)}
    if not failed["all"]:
        failed["LoRA"] = outcome(check_mode, model_type, peft_config=LoraConfig(target_modules="all-linear"))
        failed["bf16"] = failed["LoRA"] and outcome(check_mode, model_type)
        if failed["bf16"] == failed["LoRA"]:
            del failed["LoRA"]
    return {mode: reason for mode, reason in failed.items() if reason}


# ---- The page ------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Model families

PPO was run with every causal language model of transformers that can be built small, on random weights: two steps with
a critic of its own and dropout in the configuration; log-probs of padded rollouts against each row alone; both ways of
the fast sampler, where it can be used; a first ratio of 1; the checkpoint loaded by `AutoModelForCausalLM` and
`load_value_model`; a run resumed from it, to the same weights; one step with `bf16`, LoRA on all linear layers and a
critic on the policy's trunk.

That a family works here says nothing about the quality of what PPO makes of it.

`python tests/test_families.py --write` has written this page, and `pytest -m slow tests/test_families.py` checks it.
"""
REASONS = """
An `InputError` comes before the training and says what to do. An `AssertionError` is what this test found. Any other
error is raised by transformers or PEFT.
"""
TITLES = {"all": "PPO", "LoRA": "LoRA on all linear layers", "bf16": "`bf16`, or a critic on the policy's trunk"}


def write_page(results: dict[str, dict[str, str]]) -> None:
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, PEFT {peft.__version__}"
    works = ", ".join(f"`{name}`" for name, failed in results.items() if not failed)
    works = textwrap.fill(f"{works}.", 119, break_on_hyphens=False)
    broken = [
        f"| `{name}` | {TITLES[mode]} | {reason.replace('|', ' ')} |"
        for name, failed in results.items()
        for mode, reason in failed.items()
    ]
    left_out = [f"| `{name}` | {reason} |" for name, reason in NOT_TRIED.items() if name in families()]
    lines = [
        *(INTRODUCTION, f"Last run: {date.today():%d %B %Y}, on a CPU, with {versions}.", ""),
        *("## What works", "", works, ""),
        *("## What does not", REASONS, "| family | with | what happens |", "| --- | --- | --- |", *broken, ""),
        *("## Not tried", "", "| family | why |", "| --- | --- |", *left_out),
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_page() -> tuple[str, dict[str, dict[str, str]]]:
    """The version of transformers that the page is about, and what does not work, by family and mode."""
    text = PAGE.read_text(encoding="utf-8")
    results = {name: {} for name in re.findall("`(.+?)`", text.split("## What works")[1].split("## What does not")[0])}
    modes = {title: mode for mode, title in TITLES.items()}
    for name, title, reason in re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \|$", text, flags=re.MULTILINE):
        results.setdefault(name, {})[modes[title]] = reason
    return re.search(r"transformers (\S+),", text)[1], results


def words(failed: dict[str, str]) -> dict[str, list[str]]:
    """How each reason begins; how far something is off differs between machines."""
    return {mode: re.findall("[A-Za-z_]{2,}", reason)[:12] for mode, reason in failed.items()}


def test_the_page_names_every_family():
    version, results = read_page()
    if version != transformers.__version__:
        pytest.skip(f"the page is about transformers {version}")
    assert sorted([*results, *(name for name in NOT_TRIED if name in families())]) == families()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [name for name in families() if name not in NOT_TRIED])
def test_a_family_does_what_the_page_says(model_type):
    version, results = read_page()
    expected, found = results.get(model_type, {}), try_family(model_type)
    if version != transformers.__version__ and expected and not found:
        pytest.skip(f"works, but not with transformers {version}, which the page is about")
    if Version(transformers.__version__) < Version(version) and found and not expected:
        pytest.skip(f"works with transformers {version}, which the page is about, and not here: {found}")
    assert words(found) == words(expected), (
        f"{model_type}: {found or 'works'}; {PAGE.name} says: {expected or 'works'}. `python tests/test_families.py "
        f"{model_type}` tries it alone. If the fault is ours, fix it. If it is in transformers, or a configuration is "
        "too small, add to OVERRIDES or NOT_TRIED, or write the page anew: `python tests/test_families.py --write`."
    )


def main(arguments: list[str]) -> None:
    transformers.logging.set_verbosity_error()
    results = {}
    for name in [x for x in arguments if x != "--write"] or [x for x in families() if x not in NOT_TRIED]:
        start = time.time()
        with Path("/dev/null").open("w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
            results[name] = try_family(name)
        print(f"{time.time() - start:5.1f} s  {name}: {results[name] or 'works'}", flush=True)
    if "--write" in arguments:
        write_page(results)


if __name__ == "__main__":
    main(sys.argv[1:])
