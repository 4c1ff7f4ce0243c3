r"""Reward models that train nothing but a linear head: logistic regression on a language model's hidden states.

    python -m recipes.real_preferences.linear_head --data runs/real_preferences/data/reward \
        --output_dir runs/real_preferences/linear

The language model is cut after `--layers` layers, and nothing in it is trained. Two kinds of features are used: the
hidden states at a text's last token, as an ordinary reward model does, and their mean over the tokens of the response.
Each is divided by its standard deviation over the training responses, and the head `w` minimises
`mean log(1 + exp(-w (x_chosen - x_rejected))) + l2 / 2 |w|^2`.

- `last/` is an ordinary reward model with this head, from which `hf-instructgpt reward` can start.
- `mean/` holds the head of the other one in `head.json`.

Both get their scores of the held-out pairs, for compare_rewards.py.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_instructgpt.files import read_json, to_json, write_whole
from hf_instructgpt.models.loading import quiet
from hf_instructgpt.text import batches_by_length, encode_row, encode_text, pad_rows, whole_text

HEAD_FILE = "head.json"
MAX_TOKENS = 2048  # in a batch
POOLINGS = ("last", "mean")


class LinearHead:
    """The first layers of a language model and a linear head; called as a reward function is.

    Args:
        model_name (`str`): The language model, a Hub id or a folder.
        layers (`int`): Number of its layers that are used.
        max_length (`int`): Longer texts are truncated on the left.
        weights (`list` of `float`, *optional*): The head `(H,)` on mean hidden states.
    """

    def __init__(self, model_name: str, *, layers: int, max_length: int, weights: Sequence[float] | None = None):
        self.options = {"model_name": model_name, "layers": layers, "max_length": max_length}
        self.tokenizer = AutoTokenizer.from_pretrained(model_name)
        with quiet():  # about the layers that are left out
            self.model = AutoModel.from_pretrained(model_name, num_hidden_layers=layers, dtype=torch.bfloat16).eval()
        self.weights = weights

    @torch.no_grad()
    def features(self, prompts: Sequence, completions: Sequence) -> np.ndarray:
        """Hidden states `(N, 2, H)` of N completions: at the last token of the text, and their mean."""
        longest, ids, starts = self.options["max_length"], [], []
        for prompt, completion in zip(prompts, completions, strict=True):
            text = encode_text(self.tokenizer, whole_text(prompt, completion), ended=True)
            cut = max(0, len(text) - longest)
            ids.append(text[cut:])
            starts.append(min(max(0, len(encode_row(self.tokenizer, {"prompt": prompt})) - cut), len(ids[-1]) - 1))
        made = np.zeros((len(ids), len(POOLINGS), self.model.config.hidden_size))
        padding = {"pad_token_id": 0, "side": "right", "device": self.model.device}
        for batch in batches_by_length([len(text) for text in ids], max_tokens=MAX_TOKENS):
            input_ids, mask = pad_rows([ids[i] for i in batch], **padding)
            states = self.model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state.float()
            for i, mine in zip(batch, states, strict=True):
                mine = mine[: len(ids[i])]
                made[i] = torch.stack([mine[-1], mine[starts[i] :].mean(0)]).numpy()
        return made

    def pair_features(self, path: Path) -> np.ndarray:
        """Features `(N, 2, 2, H)` of the chosen and of the rejected response of each pair in a JSON Lines file."""
        pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        prompts = [pair["prompt"] for pair in pairs]
        both = [self.features(prompts, [pair[name] for pair in pairs]) for name in ("chosen", "rejected")]
        return np.stack(both, axis=1)

    def __call__(self, prompts: Sequence, completions: Sequence, **columns) -> list[float]:
        """Scores of the completions, by the head on mean hidden states."""
        return (self.features(prompts, completions)[:, 1] @ np.array(self.weights)).tolist()

    def save(self, folder: Path, weights: np.ndarray) -> None:
        """Write the head on mean hidden states."""
        write_whole(folder / HEAD_FILE, to_json({**self.options, "weights": weights.tolist()}))

    def save_reward_model(self, folder: Path, weights: np.ndarray) -> None:
        """Write an ordinary reward model with a head on the last hidden state."""
        options = {"num_hidden_layers": self.options["layers"], "num_labels": 1, "dtype": torch.float32}
        with quiet():
            model = AutoModelForSequenceClassification.from_pretrained(self.options["model_name"], **options)
        model.score.weight.data[0] = torch.tensor(weights)
        model.config.pad_token_id = self.tokenizer.pad_token_id
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, folder: Path) -> "LinearHead":
        """The head that [`save`] wrote, on its model."""
        head = read_json(folder / HEAD_FILE)
        return cls(head.pop("model_name"), **head)


def fit(features: np.ndarray, *, l2: float) -> np.ndarray:
    """The head `(H,)` for features `(N, 2, H)` of chosen and rejected responses."""
    scale = features.reshape(-1, features.shape[-1]).std(0) + 1e-6
    x = (features[:, 0] - features[:, 1]) / scale

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        d = x @ w
        wrong = np.exp(-np.logaddexp(0, d))  # sigmoid(-d)
        return np.logaddexp(0, -d).mean() + l2 / 2 * w @ w, l2 * w - (wrong[:, None] * x).mean(0)

    return minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x / scale


def main() -> None:
    """Fit both heads, save them, and score the held-out pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that prepare.py wrote")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--layers", type=int, default=18, help="layers that are used (default: 18)")
    parser.add_argument("--l2", type=float, default=1.0, help="weight of the penalty (default: 1)")
    parser.add_argument("--max_length", type=int, default=256)
    args = parser.parse_args()
    reward = LinearHead(args.model, layers=args.layers, max_length=args.max_length)
    features = {split: reward.pair_features(args.data / f"{split}.jsonl") for split in ("train", "validation", "test")}
    for i, pooling in enumerate(POOLINGS):
        folder = args.output_dir / pooling
        folder.mkdir(parents=True, exist_ok=True)
        weights = fit(features["train"][:, :, i], l2=args.l2)
        (reward.save_reward_model if pooling == "last" else reward.save)(folder, weights)
        for split in ("validation", "test"):
            scores = features[split][:, :, i] @ weights
            write_whole(folder / f"pair_scores_{split}.json", to_json(scores.tolist()))
            right = (np.sign(scores[:, 0] - scores[:, 1]) + 1) / 2
            print(f"{pooling}, {split}: accuracy {right.mean():.3f} of {len(scores)} pairs")


if __name__ == "__main__":
    main()
