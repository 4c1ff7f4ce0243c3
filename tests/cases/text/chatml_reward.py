"""A template that writes a newline behind the end of a turn: PPO scores what the reward model was trained on."""

from pathlib import Path

import torch
from product import ppo_trainer, reward_model, tokenizer


def check(folder: Path) -> None:
    for turn in ("clean", "chatml"):
        tok = tokenizer(turn)
        model = reward_model(tok).eval()
        prompts = [{"prompt": [{"role": "user", "content": c}]} for c in "abcdefgh" * 4]
        trainer = ppo_trainer(folder, model, prompts, tok=tok, max_completion_length=40)
        rollout, compared = trainer._roll_out(prompts, num_generations=1), 0
        for row, ids, mask, score in zip(
            prompts, rollout.response_ids, rollout.response_mask, rollout.scores, strict=True
        ):
            text = tok.decode(ids[mask][:-1])
            if ids[mask][-1] != tok.eos_token_id or tok(text)["input_ids"] != ids[mask][:-1].tolist():
                continue
            whole = [*row["prompt"], {"role": "assistant", "content": text}]
            whole = tok.apply_chat_template(whole, tokenize=True, return_dict=False)
            with torch.no_grad():
                own = model(input_ids=torch.tensor([whole])).logits.item()
            assert abs(own - score.item()) < 1e-4, (turn, own, score.item())
            compared += 1
        assert compared > 4
