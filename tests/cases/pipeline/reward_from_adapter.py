"""A reward model that starts from SFT's adapter: its trunk is SFT's, loaded again too, and its head is saved."""

import torch
from product import QUICK, assert_done, command, policy, saved, tokenizer, write_rows

from hf_instructgpt.models.loading import load_new_reward_model, load_policy, load_reward_model
from hf_instructgpt.scoring.reward_functions import reward_name
from hf_instructgpt.stages.load_models import load_tokenizer

LORA = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj", "--learning_rate", "1e-2"]


def hidden(model, ids):
    return model(input_ids=ids, output_hidden_states=True).hidden_states[-1]


def check(folder):
    tok = tokenizer("none")
    base = saved(folder / "base", policy(tok), tok)
    rows = write_rows(folder / "sft.jsonl", [{"prompt": "abc", "completion": "cab"}] * 4)
    sft = ["sft", "--model_name_or_path", base, "--dataset_name", rows, "--output_dir", folder / "sft"]
    assert_done(command(*sft, *QUICK["sft"], *LORA))
    made, ids = load_tokenizer(str(folder / "sft")), torch.tensor([[3, 4, 5, 6]])
    place = str(folder / "sft")
    start, theirs = load_new_reward_model(place, made).eval(), load_policy(place, made).eval()
    assert torch.allclose(hidden(start, ids), hidden(theirs, ids), atol=1e-6)
    trained = {name for name, x in start.named_parameters() if x.requires_grad}
    assert any("lora_" in name for name in trained) and any("score" in name for name in trained)
    assert all("lora_" in name or "score" in name for name in trained)

    pairs = write_rows(folder / "pairs.jsonl", [{"prompt": "abc", "chosen": "cab", "rejected": "a"}] * 4)
    reward = ["reward", "--model_name_or_path", folder / "sft", "--dataset_name", pairs, "--output_dir", folder / "rm"]
    result = command(*reward, *QUICK["reward"])
    assert_done(result, "is an adapter: it is trained on")
    again = load_reward_model(str(folder / "rm"), tokenizer=made).eval()
    assert again(input_ids=ids).logits.shape == (1, 1) and (folder / "rm" / "adapter_model.safetensors").is_file()
    assert reward_name(load_reward_model(str(folder / "rm"))) == "rm"  # not its base model's name
    assert_done(command("evaluate", "reward", folder / "rm", "--split", "train"))
