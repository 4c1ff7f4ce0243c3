"""A completion that goes on with the assistant's message of its prompt is one turn in SFT; the loss is on it alone."""

from pathlib import Path
from unittest.mock import patch

from product import QUICK, assert_done, assert_refused, assistant, command, policy, saved, tokenizer, user, write_rows


def check(folder: Path) -> None:
    from hf_instructgpt.stages.sft import CardSFTTrainer

    tok, rows = tokenizer("chatml"), []
    model, train = saved(folder / "m", policy(tok), tok), CardSFTTrainer.train

    def trained(self, **kwargs):
        rows.extend(self.train_dataset)
        return train(self, **kwargs)

    for i, completion in enumerate(([assistant("ef")], "ef")):
        data = [{"prompt": [user("ab"), assistant("cd")], "completion": completion}] * 3
        data += [{**data[0], "prompt": [user("ab")]}]
        file = write_rows(folder / f"{i}.jsonl", data)
        argv = ["sft", "--model_name_or_path", model, "--dataset_name", file, *QUICK["sft"], "--output_dir"]
        with patch.object(CardSFTTrainer, "train", trained):
            assert_done(command(*argv, folder / f"out{i}"))
        for row, content in ((rows[0], "cdef"), (rows[3], "ef")):
            assert tok.decode(row["input_ids"]) == f"user:ab<eos>\nassistant:{content}<eos>\n"
            assert tok.decode([token for token in row["labels"] if token != -100]) == "ef<eos>\n"
        rows.clear()
    assert_refused(command(*argv, folder / "x", "--assistant_only_loss", "true"), "assistant_only_loss")
