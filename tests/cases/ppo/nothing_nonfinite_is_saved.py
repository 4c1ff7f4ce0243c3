"""The last update of a run was never looked at, and a NaN model saved: nothing that is not finite is saved."""

from pathlib import Path

from product import QUICK, command, policy, ppo_trainer, saved, tokenizer, write_rows
from transformers import TrainerCallback


class Break(TrainerCallback):
    """The last update makes a weight infinite."""

    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step == state.max_steps:
            next(model.parameters()).data.view(-1)[0] = float("inf")


def check(folder: Path) -> None:
    trainer = ppo_trainer(folder, callbacks=[Break()])
    trainer.train()
    try:
        trainer.save_model()
    except FloatingPointError as error:
        assert "policy.model.embed_tokens.weight is NaN or infinite" in str(error), error
    else:
        raise AssertionError("saved")
    assert not list((folder / "out").glob("*.safetensors"))

    tok = tokenizer("none")
    texts = write_rows(folder / "texts.jsonl", [{"text": "abc"}] * 4)
    argv = ["--model_name_or_path", saved(folder / "model", policy(tok), tok), "--dataset_name", texts]
    argv += ["--learning_rate", "1e38", "--lr_scheduler_type", "constant", "--max_grad_norm", "0"]
    result = command("sft", *argv, "--output_dir", folder / "sft", *QUICK["sft"])
    assert result.code != 0 and "NaN or infinite" in result.err, result
    assert not (folder / "sft").exists()
