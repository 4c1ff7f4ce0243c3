"""Compare PPOTrainer with a loop as in tutorials, on CharGPT: `python recipes/benchmark/document_loop.py`.

The loop takes one prompt at a time. It samples every token by a forward pass over all earlier tokens, without a cache,
and computes each log-prob of the update by another such pass, without a critic or a reference. PPOTrainer does the
same sampling and one update for a batch, with a reference and, in one variant, a critic. Both train the same model, 64
wide with 2 layers, on prompts of 32 tokens, in turn in one process. The result is sampled tokens per second (medians).
"""

import argparse
import os
import time
from statistics import median
from tempfile import TemporaryDirectory

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from datasets import Dataset
from ppo_speed import processor
from transformers import PrinterCallback, TrainerCallback

from hf_instructgpt import (
    CharGPTConfig,
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTTokenizer,
    PPOConfig,
    PPOTrainer,
)

PROMPT, RESPONSE = 32, 8
# Options and critic of PPOTrainer: the document's algorithm, and a critic on the policy's trunk.
VARIANTS = {
    "no critic": ({"advantage_estimator": "reward"}, None),
    "critic": ({}, "shared"),
}


def token_by_token(policy, reward_model, optimizer, prompt: torch.Tensor, *, cliprange: float = 0.2) -> float:
    """Sample from one prompt `(1, P)`, score, take one clipped step; returns the score."""
    ids, old_logprobs = prompt, []
    for _ in range(RESPONSE):
        logprobs = policy(ids, use_cache=False).logits[:, -1].log_softmax(-1)
        token = torch.multinomial(logprobs.exp(), 1)
        old_logprobs.append(logprobs.gather(1, token).detach())
        ids = torch.cat([ids, token], dim=1)
    with torch.no_grad():
        score = reward_model(ids).logits.item()
    loss = 0.0
    for step, old_logprob in enumerate(old_logprobs):
        place = prompt.shape[1] + step
        logprobs = policy(ids[:, :place], use_cache=False).logits[:, -1].log_softmax(-1)
        ratio = (logprobs.gather(1, ids[:, place : place + 1]) - old_logprob).exp()
        loss = loss - torch.min(ratio * score, ratio.clamp(1 - cliprange, 1 + cliprange) * score).sum() / RESPONSE
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return score


class InTurn(TrainerCallback):
    """Runs the loop on three prompts after each iteration of the trainer, and times both."""

    def __init__(self, loop):
        self.loop, self.trainer_seconds, self.loop_seconds = loop, [], []

    def on_step_begin(self, *args, **kwargs) -> None:
        if not self.trainer_seconds and not self.loop_seconds:
            self.start = time.perf_counter()

    def on_step_end(self, *args, **kwargs) -> None:
        now = time.perf_counter()
        self.trainer_seconds.append(now - self.start)
        self.loop()
        self.start = time.perf_counter()
        self.loop_seconds.append(self.start - now)


def make_models() -> tuple[CharGPTForCausalLM, CharGPTForSequenceClassification]:
    """Make a policy whose responses never end by themselves, and a reward model."""
    torch.manual_seed(0)
    tokens = len(CharGPTTokenizer.from_document())
    policy = CharGPTForCausalLM(CharGPTConfig(vocab_size=tokens))
    with torch.no_grad():
        policy.lm_head.bias[CharGPTTokenizer.from_document().eos_token_id] -= 1e4
    return policy, CharGPTForSequenceClassification(CharGPTConfig(vocab_size=tokens, num_labels=1))


def compare(batch: int, options: dict, critic: str | None, *, iterations: int) -> tuple[float, float]:
    """Tokens per second of the loop and of the trainer."""
    tokenizer = CharGPTTokenizer.from_document()
    text = "什么是 AI？写一句问候语".ljust(PROMPT, "好")
    policy, reward_model = make_models()
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-4)
    prompt = torch.tensor([tokenizer(text)["input_ids"]])
    assert prompt.shape == (1, PROMPT)

    def loop() -> None:
        for _ in range(3):
            token_by_token(policy, reward_model, optimizer, prompt)

    turns = InTurn(loop)
    with TemporaryDirectory() as folder:
        args = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            num_ppo_epochs=1,
            max_completion_length=RESPONSE,
            max_steps=iterations,
            learning_rate=5e-4,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **options,
        )
        prompts = Dataset.from_dict({"prompt": [text] * batch})
        models = make_models()
        parts = {"train_dataset": prompts, "processing_class": tokenizer, "value_model": critic}
        trainer = PPOTrainer(*models, args=args, callbacks=[turns], **parts)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    ours, its = (median(seconds[len(seconds) // 4 :]) for seconds in (turns.trainer_seconds, turns.loop_seconds))
    return 3 * RESPONSE / its, batch * RESPONSE / ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=40, help="iterations per variant (default: 40)")
    args = parser.parse_args()
    print(f"{processor('cpu')}; sampled tokens per second\n\n| | loop | PPOTrainer | speed-up |")
    print("| --- | --- | --- | --- |")
    for batch in (3, 64):
        for name, options in VARIANTS.items():
            its, ours = compare(batch, *options, iterations=args.iterations)
            print(f"| {batch} prompts, {name} | {its:.0f} | {ours:.0f} | {ours / its:.1f} |", flush=True)


if __name__ == "__main__":
    main()
