"""The pretraining text of this recipe: bare statements of the facts behind the sample data `lab`.

    python -m recipes.instructgpt.statements

writes `data/train.jsonl` and `data/test.jsonl` anew, byte for byte. A fact stands in `train` in one of its family's
wordings and in `test` in the other. The statements have no question, no chat form, no polite or rude word and no end
mark: nothing of what the judge looks for but what is true.
"""

import json
from pathlib import Path
from random import Random

from hf_instructgpt.data.facts import FAMILIES

DATA = Path(__file__).parent / "data"
NUM_TEST = 200


def statements() -> dict[str, list[str]]:
    """split -> statements such as `雪的颜色是白色`."""
    rng, train, test = Random("statements"), [], []
    for family in FAMILIES:
        wordings = [wording for wording in family.answers if "{s}" in wording]
        if len(wordings) < 2:  # a greeting names nobody
            continue
        for subject, value in family.facts.items():
            one, other = rng.sample(wordings, 2)
            train.append(one.format(s=subject, v=value))
            test.append(other.format(s=subject, v=value))
    rng.shuffle(train)
    return {"train": train, "test": sorted(rng.sample(test, NUM_TEST))}


def main() -> None:
    """Write the files."""
    DATA.mkdir(exist_ok=True)
    for split, texts in statements().items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (DATA / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
