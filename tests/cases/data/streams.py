"""A stream is read as far as `max_steps` needs, by SFT and PPO; a resumed run reads the same rows."""

from pathlib import Path

from product import QUICK, assert_done, assert_refused, command, policy, ppo_trainer, saved, tokenizer, write_rows


def check(folder: Path) -> None:
    from datasets import IterableDataset
    from safetensors.torch import load_file

    from hf_instructgpt.errors import InputError

    read = []

    def prompts():
        for i in range(1000):
            read.append(i)
            yield {"prompt": "abcdefghij"[i % 10] * (1 + i % 3)}

    def train(name: str, resume=None, stop=None):
        batch = {"per_device_train_batch_size": 2, "num_mini_batches": 2, "num_ppo_epochs": 1, "max_steps": 4}
        trainer = ppo_trainer(
            folder / name,
            save_strategy="steps",
            save_steps=2,
            **batch,
            train_dataset=IterableDataset.from_generator(prompts),
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = train("a")
    assert len(whole.train_dataset) == 2 * 4 and max(read) < 100, (len(whole.train_dataset), max(read))
    checkpoint = folder / "a" / "out" / "checkpoint-2"
    again = train("b", resume=str(checkpoint))
    ends = [load_file(folder / name / "out" / "checkpoint-4" / "model.safetensors") for name in ("a", "b")]
    assert all((ends[0][key] == ends[1][key]).all() for key in ends[0]) and again.state.global_step == 4
    try:
        ppo_trainer(folder / "c", max_steps=-1, train_dataset=IterableDataset.from_generator(prompts))
        raise AssertionError("a stream without `max_steps` was taken")
    except InputError as error:
        assert "max_steps" in str(error)

    tok = tokenizer()
    model = saved(folder / "model", policy(tok), tok)
    data = write_rows(folder / "rows.jsonl", [{"prompt": "ab", "completion": "cd"}] * 50)
    argv = ["--dataset_name", data, "--model_name_or_path", model, *QUICK["sft"], "--streaming"]
    argv += ["--per_device_train_batch_size", "2"]
    assert_done(command("sft", *argv, "--output_dir", folder / "out"))
    assert_refused(command("sft", *argv, "--max_steps", "-1", "--output_dir", folder / "d"), "streaming", "max_steps")
