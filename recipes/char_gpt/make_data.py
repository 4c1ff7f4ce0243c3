"""Generate the sample data `lab` and `lab-en`: this script rewrites the package's files byte for byte.

Every random choice comes from a `random.Random` seeded with a text (never from hash order). Each config and split has
its own seed, so a change in one file leaves the others unchanged.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hf_instructgpt.data.lab_facts import Lab
from hf_instructgpt.data.lab_judge import LABS, gold_reward
from hf_instructgpt.data.loading import SAMPLES_DIR

SEED = 0
# Rows of each family: ten times this is the size of the split.
ROWS = {
    "train": {"sft": 300, "ranking": 100, "prompts": 50},
    "validation": {"sft": 20, "ranking": 20, "prompts": 20},
    "test": {"sft": 20, "ranking": 20, "prompts": 30},
}
# A training response gets a random grade this often; it flips about 10 % of the pairs (measured by the tests).
RANDOM_GRADE_RATE = 0.155


@dataclass(frozen=True)
class Mixture:
    """How often an answer is right, polite, rude, closed by one end mark, or rambling."""

    right: float
    polite: float
    rude: float
    end_mark: float
    rambling: float


DEMONSTRATIONS = Mixture(right=0.90, polite=0.35, rude=0.20, end_mark=0.45, rambling=0.10)
RANKED = Mixture(right=0.65, polite=0.40, rude=0.30, end_mark=0.55, rambling=0.15)


def split_prompts(lab: Lab) -> dict[str, dict[str, list[str]]]:
    """Prompts by split and config, in file order; splits share no prompt, configs of one split may."""
    prompts: dict = {split: {config: [] for config in configs} for split, configs in ROWS.items()}
    rng = Random(f"{SEED}-split")
    for family in lab.families:
        pool = [prompt for prompt, fact in lab.prompts.items() if fact.family is family]
        rng.shuffle(pool)
        for split in ("test", "validation"):
            held_out = max(ROWS[split].values())
            for config, rows in ROWS[split].items():
                prompts[split][config] += pool[:rows]
            pool = pool[held_out:]
        # PPO's prompts have no demonstration and no ranking; the rankings overlap the demonstrations where they must.
        demonstrated, ranked, sampled = ROWS["train"].values()
        prompts["train"]["sft"] += pool[:demonstrated]
        prompts["train"]["ranking"] += pool[-sampled - ranked : -sampled]
        prompts["train"]["prompts"] += pool[-sampled:]
    for configs in prompts.values():
        for rows in configs.values():
            rng.shuffle(rows)
    return prompts


def answer(lab: Lab, prompt: str, mixture: Mixture, rng: Random) -> str:
    """One answer, at most `lab.longest` units: prefix, content, rambling tail, end mark, by the mixture's rates."""
    family, _, value = lab.prompts[prompt]
    if rng.random() >= mixture.right:
        # Values the family's other questions have for an answer: a wrong one does not look wrong by itself.
        value = rng.choice(sorted(set(family.facts.values()) - {value}))
    manner = rng.random()
    prefix = ""
    if manner < mixture.polite:
        prefix = rng.choice(lab.polite)
    elif manner < mixture.polite + mixture.rude:
        prefix = rng.choice(lab.rude)
    text = prefix + family.answers[0].format(v=value)
    if lab.capitals:
        text = text[0].upper() + text[1:]
    mark = rng.choice(lab.marks) if rng.random() < mixture.end_mark else ""
    if rng.random() < mixture.rambling:
        fits = [lab.good_length < len(lab.units(text + tail + mark)) <= lab.longest for tail in lab.tails]
        text += rng.choice([tail for tail, fit in zip(lab.tails, fits, strict=True) if fit])
    return text + mark


def ranked_response(lab: Lab, prompt: str, others: list[str], rng: Random) -> str:
    """One response to rank: 85 % from the mixture, 5 % cut off, 5 % to another prompt, 5 % with a stuttering tail."""
    kind = rng.random()
    if kind < 0.05:
        other = rng.choice([text for text in rng.sample(others, 2) if text != prompt])
        return answer(lab, other, RANKED, rng)
    text = answer(lab, prompt, RANKED, rng)
    units = lab.units(text)
    if kind < 0.10:
        units = units[: rng.randrange(1, len(units))]
    elif kind < 0.15:
        units = (units + units[-2:] * rng.randint(1, 3))[: lab.longest]
    return "".join(units)


def grade(prompt: str, response: str) -> int:
    """The labeller's coarse mark, -4 to 4: `round(3.5 * gold)`."""
    return round(3.5 * gold_reward(prompt, response))


def ranks_of(scores: list[float]) -> list[int]:
    """Rank 1 for the highest score; equal scores share a rank and no rank is left out."""
    order = sorted(set(scores), reverse=True)
    return [order.index(score) + 1 for score in scores]


def ranking(lab: Lab, prompt: str, others: list[str], rng: Random, *, noisy: bool) -> dict:
    """4 to 9 distinct responses, ranked by a noisy grade (training) or by the exact gold score."""
    size = rng.randint(4, 9)
    responses: list[str] = []
    while len(responses) < size:
        response = ranked_response(lab, prompt, others, rng)
        if response not in responses:
            responses.append(response)
    if not noisy:
        scores = [gold_reward(prompt, response) for response in responses]
    else:
        scores = [
            rng.randint(-4, 4) if rng.random() < RANDOM_GRADE_RATE else grade(prompt, response)
            for response in responses
        ]
    if len(set(scores)) == 1:  # nothing is preferred to anything: draw again
        return ranking(lab, prompt, others, rng, noisy=noisy)
    return {"prompt": prompt, "responses": responses, "ranks": ranks_of(scores)}


def generate(lab: Lab) -> dict[str, list[dict]]:
    """File stem (`config-split`) -> rows as they are stored."""
    files = {}
    for split, configs in split_prompts(lab).items():
        for config, prompts in configs.items():
            rng = Random(f"{SEED}-{config}-{split}")
            if config == "sft":
                rows = [{"prompt": prompt, "answer": answer(lab, prompt, DEMONSTRATIONS, rng)} for prompt in prompts]
            elif config == "ranking":
                rows = [ranking(lab, prompt, prompts, rng, noisy=split == "train") for prompt in prompts]
            else:
                rows = [{"prompt": prompt} for prompt in prompts]
            files[f"{config}-{split}"] = rows
    return files


def write(lab: Lab, output_dir: Path) -> None:
    """Write one JSONL file for each config and split into `output_dir`."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for stem, rows in generate(lab).items():
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows]
        (output_dir / f"{stem}.jsonl").write_bytes("".join(lines).encode("utf-8"))


def main() -> None:
    """Write the files again; the bytes are the same every time."""
    parser = argparse.ArgumentParser(description="Write the JSONL files of the sample data.")
    parser.add_argument("--name", choices=LABS, default="lab", help="data set (default: lab)")
    parser.add_argument("--output_dir", type=Path, help="output folder (default: the package's own copy)")
    args = parser.parse_args()
    write(LABS[args.name], args.output_dir or SAMPLES_DIR / args.name)


if __name__ == "__main__":
    main()
