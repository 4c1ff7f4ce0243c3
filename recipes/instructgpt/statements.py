"""Generate the pretraining text of this recipe: plain statements of the facts behind the sample data `lab`.

    python -m recipes.instructgpt.statements

rewrites `data/train.jsonl` and `data/test.jsonl`, byte for byte. Each fact is in `train` in one wording and in `test`
in another. The statements have no question, no chat form, no polite or rude word and no end mark: of what the judge
scores, they teach only the facts.
"""

import json
from pathlib import Path
from random import Random

from hf_instructgpt.data.lab_facts_zh import FAMILIES

DATA = Path(__file__).parent / "data"
NUM_TEST = 200


def statements() -> dict[str, list[str]]:
    """Statements such as `雪的颜色是白色`, by split."""
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
    """Write both files."""
    DATA.mkdir(exist_ok=True)
    for split, texts in statements().items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (DATA / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
