"""What the chat template is to get for all rows is one option, in every stage: Qwen3 without thinking, for one."""

from pathlib import Path

from product import QUICK, assert_done, assert_refused, command, policy, reward_model, saved, tokenizer, write_rows

TEMPLATE = (
    "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}"
    "{% if enable_thinking is undefined %}{{ raise_exception('it was not passed') }}{% endif %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def check(folder: Path) -> None:
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    model, reward = saved(folder / "m", policy(tok), tok), saved(folder / "rm", reward_model(tok), tok)
    user = [{"role": "user", "content": "ab"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("d", "e")]
    rows = {
        "sft": {"prompt": user, "completion": answers[0]},
        "reward": {"prompt": user, "responses": answers, "ranks": [1, 2]},
        "ppo": {"prompt": user},
    }
    for stage, row in rows.items():
        file = write_rows(folder / f"{stage}.jsonl", [row] * 8)
        more = ["--reward_funcs", reward] if stage == "ppo" else []
        argv = ["--dataset_name", file, "--model_name_or_path", model, *more, *QUICK[stage], "--output_dir"]
        assert_refused(command(stage, *argv, folder / f"no-{stage}"), "it was not passed")
        flag = ["--chat_template_kwargs", '{"enable_thinking": false}']
        assert_done(command(stage, *argv, folder / f"out-{stage}", *flag))
    assert_refused(command("ppo", *argv, folder / "x", "--chat_template_kwargs", "nope"), "chat_template_kwargs")
