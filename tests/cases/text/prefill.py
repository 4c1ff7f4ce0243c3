"""A prompt that ends with the assistant's message is continued, by the policy and in what a reward model reads."""

from pathlib import Path

from product import ppo_trainer, tokenizer

from hf_instructgpt.text import encode_prompt, whole_text


def check(folder: Path) -> None:
    tok = tokenizer("chatml")
    prompt = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"}]
    assert tok.decode(encode_prompt(tok, prompt)) == "user:abc<eos>\nassistant:de"
    whole = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "defg"}]
    assert whole_text(prompt, "fg") == whole_text(prompt, [{"role": "assistant", "content": "fg"}]) == whole
    trainer = ppo_trainer(folder, prompts=[{"prompt": prompt}] * 8, tok=tok)
    rollout = trainer._roll_out([{"prompt": prompt}], num_generations=1)
    assert tok.decode(rollout.prompt_ids[0]) == "user:abc<eos>\nassistant:de"
