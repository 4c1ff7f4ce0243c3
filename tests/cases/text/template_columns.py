"""The columns `tools` and `chat_template_kwargs` reach the chat template in PPO and in the reward stage, as in SFT."""

import json
from pathlib import Path

from datasets import Dataset
from product import ppo_trainer, reward_model, tokenizer
from trl import RewardConfig

from hf_instructgpt import RankingRewardTrainer

TEMPLATE = (
    "{% if tools %}[{{ tools[0].name }}]{% endif %}"
    "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{{ '|' if enable_thinking is false }}{% endif %}"
)


def check(folder: Path) -> None:
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    prompt = [{"role": "user", "content": "abc"}]
    options = {
        "tools": json.dumps([{"name": "find", "type": None}]),
        "chat_template_kwargs": {"enable_thinking": False},
    }
    trainer = ppo_trainer(folder, prompts=[{"prompt": prompt, **options}] * 8, tok=tok)
    rollout = trainer._roll_out([{"prompt": prompt, **options}], num_generations=1)
    assert tok.decode(rollout.prompt_ids[0]) == "[find]user:abc<eos>assistant:|"

    sides = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "d"), ("rejected", "e"))}
    args = RewardConfig(output_dir=str(folder / "rm"), use_cpu=True, report_to=[], max_length=None)
    rows = Dataset.from_list([{"prompt": prompt, **sides, **options}] * 4)
    ranking = RankingRewardTrainer(reward_model(tok), args, processing_class=tok, train_dataset=rows)
    assert tok.decode(ranking.train_dataset[0]["response_ids"][0]) == "[find]user:abc<eos>assistant:d<eos>"
