"""The arena: tokens counted by hand, the same for all methods; pairs, choices, the table; a whole tiny run."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import datasets
import pytest
import torch
import yaml
from datasets import Dataset

from hf_instructgpt.char_gpt import (
    CharGPTConfig,
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTTokenizer,
)
from hf_instructgpt.cli import main
from hf_instructgpt.data import load_sample_dataset
from hf_instructgpt.errors import InputError
from hf_instructgpt.experiments import arena, arena_methods, experiment, jobs
from hf_instructgpt.experiments.arena import Arena
from hf_instructgpt.experiments.arena_methods import (
    BudgetCallback,
    Contest,
    PairTrainer,
    Setting,
    parse_method,
    run_method,
)
from hf_instructgpt.experiments.arena_report import analyse
from hf_instructgpt.experiments.experiment import findings
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.ppo.trainer import PPOTrainer
from hf_instructgpt.sampling.policy_sampler import PolicySampler
from hf_instructgpt.stages import load_data, sft

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "dropout": 0.0}
ROWS = {split: rows.select(range(24)) for split, rows in load_sample_dataset("lab", "prompts").items()}
# 8 responses a rollout and two updates from it.
METHODS = {
    "dpo": {"per_device_train_batch_size": 4, "num_train_epochs": 1, "gradient_checkpointing": False},
    "rloo": {"per_device_train_batch_size": 4, "steps_per_generation": 2, "gradient_checkpointing": False},
    "grpo": {"per_device_train_batch_size": 8, "num_iterations": 2, "gradient_checkpointing": False},
    "ppo": {"per_device_train_batch_size": 4, "num_mini_batches": 2, "num_ppo_epochs": 1},
}
TOKENIZER = CharGPTTokenizer.from_texts(row["prompt"][0]["content"] for rows in ROWS.values() for row in rows)
PAD, EOS, UNK = (getattr(TOKENIZER, f"{name}_token_id") for name in ("pad", "eos", "unk"))
# 1 to 4 tokens, the last one cut off. No prompt has an unknown character.
RESPONSES = [[EOS], [UNK, EOS], [UNK, UNK, EOS], [UNK, UNK, UNK, 6]]
ONLINE = [method for method in METHODS if method != "dpo"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A policy and a reward model of random weights, and 24 prompts of `lab` per split, in files."""
    folder = tmp_path_factory.mktemp("arena")
    ids = {"pad_token_id": PAD, "eos_token_id": EOS}
    torch.manual_seed(0)
    for name, cls, more in (
        ("sft", CharGPTForCausalLM, {}),
        ("reward", CharGPTForSequenceClassification, {"num_labels": 1}),
    ):
        cls(CharGPTConfig(vocab_size=len(TOKENIZER), **SIZES, **ids, **more)).save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
    for split, rows in ROWS.items():
        rows.to_json(folder / "prompts" / f"{split}.jsonl")
    return Setting(
        sft_model=str(folder / "sft"),
        reward_model=str(folder / "reward"),
        prompts={"dataset_name": str(folder / "prompts")},
        judge="hf_instructgpt.data.gold_rewards",
        budget_tokens=50,
        max_completion_length=4,
        missing_eos_penalty=1.0,
    )


@pytest.fixture
def planted(monkeypatch):
    """Of each four responses one is `RESPONSES[k]` for each k, in an order that moves on: 20 tokens in 8 responses."""
    calls = []

    def generate(model, input_ids, **kwargs):
        rows = [RESPONSES[(i + len(calls)) % 4] for i in range(len(input_ids))]
        calls.append(len(input_ids))
        return torch.cat([input_ids, torch.tensor([row + [PAD] * (4 - len(row)) for row in rows])], dim=1)

    def sample(sampler, prompt_ids, **_):
        calls.append(len(prompt_ids))
        return [[*RESPONSES[(i + len(calls) - 1) % 4]] for i in range(len(prompt_ids))]

    monkeypatch.setattr(CharGPTForCausalLM, "generate", generate)  # how RLOO and GRPO sample
    monkeypatch.setattr(PolicySampler, "generate", sample)  # and PPO
    return calls


def train(cell, method, tmp_path, options=None, learning_rate=1e-3):
    options = METHODS[method] | (options or {})
    given = {"learning_rate": learning_rate, "seed": 0, "output_dir": str(tmp_path), "source": "test"}
    return cell.train(method, *parse_method(method, options, cell.setting, **given))


# ---- The budget ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ONLINE)
def test_the_first_rollout_that_reaches_the_budget_is_the_last(method, setting, planted, tmp_path, monkeypatch):
    """Of 50 tokens, rollouts of 20: three, 60 tokens, by our count and by the trainer's own; two updates from each."""
    rates, step = [], torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    cell = Contest(setting, seed=0)
    before = [p.clone() for p in cell.policy.parameters()]
    assert train(cell, method, tmp_path) == {"trainer_tokens": 60}
    assert planted == [8, 8, 8] and cell.reward.num_tokens == 60
    assert rates == pytest.approx([1e-3, 1e-3, 6e-4, 6e-4, 2e-4, 2e-4])
    assert any(not torch.equal(a, b) for a, b in zip(before, cell.policy.parameters(), strict=True))


def test_the_learning_rate_falls_over_the_budget_and_training_ends_with_a_rollout():
    """Before the second rollout of 20 of 50 tokens: 1 - 20 / 50; the end comes with the last of its two updates."""
    reward = SimpleNamespace(num_tokens=40, num_tokens_before=20)
    callback = BudgetCallback(reward, budget_tokens=50, updates_per_rollout=2)
    groups = [{"initial_lr": 0.1, "lr": 9.0}, {"initial_lr": 1.0, "lr": 9.0}]
    callback.on_pre_optimizer_step(None, None, None, optimizer=SimpleNamespace(param_groups=groups))
    assert [group["lr"] for group in groups] == pytest.approx([0.06, 0.6])
    for num_tokens, step, stops in ((49, 4, False), (50, 3, False), (50, 4, True)):
        reward.num_tokens = num_tokens
        control = SimpleNamespace(should_training_stop=False)
        callback.on_step_end(None, SimpleNamespace(global_step=step), control)
        assert control.should_training_stop == stops


@pytest.mark.parametrize("options", [{}, {"advantage_estimator": "reward"}])
def test_ppo_s_critic_starts_from_the_reward_model(options, setting, planted, tmp_path, monkeypatch):
    made = []

    class Recorded(PPOTrainer):
        def train(self):
            made.append(self.model.value_model)
            return super().train()

    monkeypatch.setitem(arena_methods.ONLINE, "ppo", Recorded)
    cell = Contest(replace(setting, budget_tokens=1), seed=0)
    # What an update moves first is the head; the rate is too small for the rest to be seen.
    train(cell, "ppo", tmp_path, options, learning_rate=1e-9)
    if options:
        assert made == [None]
        return
    mine, its = (dict(model.named_parameters()) for model in (made[0].backbone, cell.reward_model.base_model))
    assert all(torch.allclose(mine[name], its[name], atol=1e-6) for name in mine) and mine.keys() == its.keys()


def test_scores_and_tokens_by_hand_and_as_ppo_has_them(setting, tmp_path, planted):
    cell = Contest(setting, seed=0)
    prompts = ROWS["train"]["prompt"][:4]
    rows = [{"prompt": prompt} for prompt in prompts]
    samples, scores = cell.sample(rows)
    ids = samples.completion_ids
    assert ids == RESPONSES
    # `指令：`, the text, ` 回答：`: nothing here ends with an end-of-text token.
    texts = [f"指令：{prompt[0]['content']} 回答：" for prompt in prompts]
    asked = [TOKENIZER(text)["input_ids"] for text in texts]
    assert (cell.reward.num_tokens, cell.reward.num_tokens_before) == (10, 0)
    assert cell.reward.num_prompt_tokens == sum(map(len, asked))
    alone = [cell.reward_model(torch.tensor([row + mine])).logits.item() for row, mine in zip(asked, ids, strict=True)]
    assert scores == pytest.approx([*alone[:3], alone[3] - 1.0], abs=1e-5)
    trainer = PPOTrainer(
        cell.policy,
        [cell.reward_model],
        args=PPOConfig(output_dir=str(tmp_path), use_cpu=True, max_completion_length=4, missing_eos_penalty=1.0),
        train_dataset=ROWS["train"],
        processing_class=cell.tokenizer,
    )
    planted.clear()
    rollout = trainer._roll_out(rows, num_generations=1)
    assert rollout.scores.tolist() == pytest.approx(scores, abs=1e-5)
    cell.sample(rows[:3])
    assert (cell.reward.num_tokens, cell.reward.num_tokens_before) == (19, 10)  # 2, 3 and 4 more


# ---- DPO and best-of-n ---------------------------------------------------------------------------------------------


class Table(torch.nn.Module):
    """A reward model that scores the response `RESPONSES[k]` by the k-th number."""

    config = CharGPTConfig(pad_token_id=PAD)
    device = torch.device("cpu")

    def __init__(self, *scores):
        super().__init__()
        self.scores = torch.tensor(scores)

    def get_input_embeddings(self):
        return SimpleNamespace(num_embeddings=len(TOKENIZER))

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.scores[(input_ids == UNK).sum(-1)].unsqueeze(-1))


def cell_with(setting, *scores, **changes):
    cell = Contest(replace(setting, **changes), seed=0)
    cell.reward_model = cell.reward.model = Table(*scores)
    return cell


def test_pairs_are_best_against_worst_until_the_budget_is_used(setting, planted, monkeypatch):
    """Less the penalty of 1 the scores are 1, 3, 2 and 0.5. Two prompts at a time, 20 tokens: three times for 50."""
    monkeypatch.setattr(arena_methods, "BATCH_SIZE", 8)
    cell = cell_with(setting, 1.0, 3.0, 2.0, 1.5)
    pairs = cell.sample_pairs(4)
    assert planted == [8, 8, 8] and cell.reward.num_tokens == 60 and len(pairs) == 6
    assert {(*pair["chosen_ids"], 0, *pair["rejected_ids"]) for pair in pairs} == {(UNK, EOS, 0, UNK, UNK, UNK, 6)}
    prompts = [tuple(pair["prompt_ids"]) for pair in pairs]
    known = [tuple(arena_methods.encode_prompt(TOKENIZER, prompt)) for prompt in ROWS["train"]["prompt"]]
    assert len(set(prompts)) == 6 and set(prompts) <= set(known) and prompts != known[:6]
    assert cell_with(setting, 1.0, 3.0, 2.0, 1.5).sample_pairs(4) == pairs  # from the seed alone


def test_ties_give_no_pair_and_prompts_come_again(setting, planted):
    """Of two responses a prompt has k = 0 and 1, which tie, or 2 and 3; 24 prompts are 48 responses of 120 tokens."""
    cell = cell_with(setting, 1.0, 1.0, 2.0, 5.0, budget_tokens=121)
    pairs = cell.sample_pairs(2)
    assert planted == [128] and len(pairs) == 32 and cell.reward.num_tokens == 320
    assert {tuple(pair["chosen_ids"]) for pair in pairs} == {(UNK, UNK, UNK, 6)}
    assert len({tuple(pair["prompt_ids"]) for pair in pairs}) <= 24
    with pytest.raises(InputError, match="there are no pairs"):
        cell_with(setting, 1.0, 1.0, 1.0, 2.0).train("dpo", SimpleNamespace(num_generations=4), None)


def test_dpo_learns_from_the_ids_as_they_were_sampled(setting, tmp_path):
    """Neither an end-of-text token nor anything else is added; and the chosen response becomes more likely."""
    pairs = Dataset.from_list([{"prompt_ids": [3, 4], "chosen_ids": [UNK, EOS], "rejected_ids": [UNK, UNK, 6]}] * 4)
    cell = Contest(setting, seed=0)
    options = {"learning_rate": 1e-2, "seed": 0, "output_dir": str(tmp_path), "source": ""}
    config = parse_method("dpo", METHODS["dpo"] | {"max_steps": 8}, setting, **options)[-1]
    trainer = PairTrainer(cell.policy, args=config, train_dataset=pairs, processing_class=cell.tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].tolist() == [[3, 4, UNK, EOS, PAD]] * 4 + [[3, 4, UNK, UNK, 6]] * 4
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1, 0]] * 4 + [[0, 0, 1, 1, 1]] * 4
    trainer.train()
    margins = [
        model(torch.tensor([[3, 4, UNK]])).logits.log_softmax(-1)[0, -1, [EOS, UNK]].diff().item()
        for model in (cell.policy, cell.reference)
    ]
    assert margins[0] < margins[1]


@pytest.mark.parametrize(
    ("budget", "n", "chosen", "score", "length"),
    [
        (89, 1, [0, 1, 2, 3], 7.5 / 4, 2.5),
        (91, 2, [1, 1, 2, 0], 9 / 4, 2.0),
        (240, 4, [1, 1, 1, 1], 3.0, 2.0),
    ],
)
def test_best_of_n_by_hand(setting, planted, budget, n, chosen, score, length):
    """24 prompts take 60 tokens a time. It is chosen by 1, 3, 2 and 0.5; without the penalty the last is 1.5."""
    cell = cell_with(setting, 1.0, 3.0, 2.0, 1.5, budget_tokens=budget)
    found = cell.measure_chosen(*cell.choose_best())
    assert found["n"] == n == len(planted) and cell.reward.num_tokens == 60 * n
    assert found["sampled"]["score"] == pytest.approx(score) and found["sampled"]["length"] == length
    assert found["sampled"]["length"] * 4 == sum(len(RESPONSES[k]) for k in chosen)
    assert found["sampled"]["kl"] == pytest.approx({1: 0.0, 2: math.log(2) - 0.5, 4: math.log(4) - 0.75}[n])
    assert len(found["sampled"]["gold"]) == 24


# ---- Measuring -----------------------------------------------------------------------------------------------------


def test_the_untrained_policy_is_measured(setting, tmp_path):
    result = run_method(tmp_path, setting=setting, method="sft", learning_rate=None, seed=1, options={})
    assert (
        result["tokens"] == 0 and result["diverged"] is None and result["sampled"]["kl"] == pytest.approx(0, abs=1e-5)
    )
    for how in ("sampled", "greedy"):
        assert len(result[how]["gold"]) == 24 and 1 <= result[how]["length"] <= 4 and result[how]["correct"] is None
    lab = replace(setting, prompts={"dataset_name": "lab"})
    cell = Contest(lab, seed=1 + 2**31)
    cell.prompts = ROWS
    assert cell.measure()["sampled"] == {**result["sampled"], "correct": 0.0}


def test_sft_s_answers_are_none_of_best_of_n_s_candidates(setting, tmp_path):
    """With the same random numbers best-of-1 would be SFT, and best-of-n win too often against one of its own."""
    given = {"learning_rate": None, "seed": 1, "options": {}}
    sft, best = (
        run_method(tmp_path, setting=replace(setting, budget_tokens=1), method=method, **given)
        for method in ("sft", "best_of_n")
    )
    assert best["n"] == 1 and best["sampled"]["score"] != sft["sampled"]["score"]


def test_a_learning_rate_is_chosen_by_what_was_trained_on(setting, planted):
    """24 answers of which every fourth is cut off: 1, 3, 2 and 1.5 - 1."""
    cell = cell_with(setting, 1.0, 3.0, 2.0, 1.5)
    assert cell.measure()["validation_score"] == pytest.approx(6.5 / 4)


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_numbers_that_become_nan_are_a_result(method, setting, tmp_path):
    given = {"setting": setting, "method": method, "seed": 0, "options": METHODS[method]}
    result = run_method(tmp_path, learning_rate=1e30, **given)
    assert "nan" in result["diverged"].lower() and result["tokens"] > 0 and "sampled" not in result


def test_any_other_error_is_raised(setting, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("ours")

    monkeypatch.setattr(Contest, "train", fail)
    with pytest.raises(RuntimeError, match="ours"):
        run_method(tmp_path, setting=setting, method="ppo", learning_rate=1.0, seed=0, options=METHODS["ppo"])


# ---- The table -----------------------------------------------------------------------------------------------------


def made_up(method, seed, gold, *, rate=None, validation=0.0, kl=1.0, diverged=None):
    sampled = {"gold": gold, "score": 2.0, "correct": 0.5, "kl": kl, "length": 8.0}
    result = {"method": method, "learning_rate": rate, "seed": seed, "diverged": diverged, "tokens": 100 + seed}
    if diverged is not None:
        return result
    more = {"sampled": sampled, "seconds": 3.0, "processor_seconds": 2.0}
    if method == "best_of_n":
        return result | more | {"n": 7}
    return result | more | {"greedy": {**sampled, "gold": gold[::-1]}, "validation_score": validation}


JOBS = [
    *(made_up("sft", seed, [0.0, 0.2], kl=0.0) for seed in range(3)),
    *(made_up("best_of_n", seed, [0.0, 0.4]) for seed in range(3)),
    # Means 0.3, 0.4 and 0.8: mean 0.5, standard deviation sqrt(0.07).
    *(
        made_up("ppo", seed, gold, rate=1e-3, validation=1.0 + seed, kl=2.0 + seed)
        for seed, gold in enumerate(([0.4, 0.2], [0.8, 0.0], [0.8, 0.8]))
    ),
    *(made_up("ppo", seed, [0.7, 0.7], rate=3e-3, validation=1.9) for seed in range(3)),
    *(made_up("ppo", seed, [1.0, 1.0], rate=1e-2, diverged="NaN" if seed == 2 else None) for seed in range(3)),
]
RESULTS = {
    "versions": {"trl": "1.16.0"},
    "judge": "judge.f",
    "seeds": [0, 1, 2],
    "budget_tokens": 100,
    "num_prompts": 2,
    "chosen_on": "dev",
    "methods": {"ppo": {}},
}


def test_the_numbers_of_a_row_by_hand():
    rows = {(row["method"], row["learning_rate"]): row for row in analyse(JOBS)}
    ppo = rows["ppo", 1e-3]["numbers"]
    half = 4.302653 * math.sqrt(0.07 / 3)
    assert ppo["judge"]["values"] == pytest.approx([0.3, 0.4, 0.8]) and ppo["judge"]["mean"] == pytest.approx(0.5)
    assert ppo["judge"]["interval"] == pytest.approx([0.5 - half, 0.5 + half])
    # Against 0 and 0.2: win and tie, win and loss, two wins.
    assert ppo["win_rate"]["values"] == [0.75, 0.5, 1.0]
    assert ppo["greedy_win_rate"]["values"] == [0.75, 0.5, 1.0] and ppo["kl"]["mean"] == 3.0
    assert ppo["tokens"]["values"] == [100, 101, 102] and ppo["validation_score"]["mean"] == 2.0
    assert [rows["ppo", rate]["chosen"] for rate in (1e-3, 3e-3, 1e-2)] == [True, False, False]
    assert rows["ppo", 1e-2]["numbers"] == {} and rows["ppo", 1e-2]["diverged"] == {"2": "NaN"}
    best = rows["best_of_n", None]
    assert (
        best["numbers"]["judge"]["interval"] == pytest.approx([0.2, 0.2]) and best["numbers"]["greedy_judge"] is None
    )
    assert best["numbers"]["win_rate"]["mean"] == 0.75 and not best["chosen"] and not rows["sft", None]["chosen"]
    assert analyse([JOBS[0]])[0]["numbers"]["judge"]["interval"] is None


def test_the_table_in_words():
    results = {**RESULTS, "rows": analyse(JOBS)}
    lines = Arena.report(results).splitlines()
    header = next(line for line in lines if line.startswith("| method"))
    table = {
        tuple(line.split(" | ")[:2]): dict(zip(header.split(" | ")[2:], line.split(" | ")[2:], strict=True))
        for line in lines[lines.index(header) + 2 :][:5]
    }
    chosen = table["| PPO", "**0.001**"]
    assert (
        chosen["judge"] == "0.50 ± 0.66" and chosen["wins over SFT"] == "75 % ± 62 %" and chosen["KL"] == "3.00 ± 2.48"
    )
    assert chosen["tokens sampled"] == "101" and chosen["reward model, choice"] == "2.00 ± 2.48"
    assert any("on the prompts of the split `dev`" in line for line in lines)
    assert table["| PPO", "0.01"]["judge"] == "diverged, 1 of 3 seeds" and table["| PPO", "0.01"]["KL"] == "–"
    assert table["| best-of-n, n = 7", "–"]["judge, greedy"] == "–"
    assert findings(Arena.report(results)) == [
        "SFT: the judge's mean is 0.10 ± 0.00.",
        "best-of-n: the judge's mean is 0.20 ± 0.00.",
        "PPO with learning rate 0.01 diverged with seed 2: NaN",
        "PPO with learning rate 0.001, chosen by the reward model: the judge's mean is 0.50 ± 0.66; it is highest "
        "with 0.003, 0.70 ± 0.00; it is the lowest or highest learning rate tried, so a better one may lie beyond.",
    ]


def test_a_trainer_that_counts_other_tokens_is_named():
    cells = [*JOBS[:6], *({**cell, "trainer_tokens": cell["tokens"] + (cell["seed"] == 1)} for cell in JOBS[9:12])]
    lines = findings(Arena.report({**RESULTS, "rows": analyse(cells)}))
    assert lines[-1] == (
        "WARNING: PPO with learning rate 0.003: its trainer counted other numbers of tokens than the arena."
    )
    cells = [*JOBS[:6], *({**cell, "trainer_tokens": cell["tokens"]} for cell in JOBS[9:12])]
    assert not any("WARNING" in line for line in findings(Arena.report({**RESULTS, "rows": analyse(cells)})))


def test_tokens_beside_the_budget_are_named():
    lines = findings(Arena.report({**RESULTS, "budget_tokens": 90, "rows": analyse(JOBS)}))
    assert lines[-3:] == [
        "WARNING: best-of-n sampled 101 tokens; the budget is 90.",
        "WARNING: PPO with learning rate 0.001 sampled 101 tokens; the budget is 90.",
        "WARNING: PPO with learning rate 0.003 sampled 101 tokens; the budget is 90.",
    ]


def test_a_method_that_always_diverged_has_no_choice():
    rows = analyse([*JOBS[:6], made_up("ppo", 0, [], rate=1.0, diverged="NaN")])
    assert not any(row["chosen"] for row in rows)
    lines = findings(Arena.report({**RESULTS, "rows": rows}))
    assert lines[2:] == ["PPO with learning rate 1 diverged with seed 0: NaN"]


# ---- The whole command ---------------------------------------------------------------------------------------------

STAGE = {
    "dataset_name": "lab",
    "dataset_test_split": "validation",
    "max_steps": 2,
    "save_strategy": "no",
    "report_to": "none",
    "gradient_checkpointing": False,
    "max_length": 50,
}
CONFIG = {
    "seeds": [1],
    "budget_tokens": 60,
    "max_completion_length": 4,
    "judge": "hf_instructgpt.data.gold_rewards",
    "prompts": {"dataset_name": "lab"},
    "sft": {**STAGE, "model_init_kwargs": SIZES},
    "reward": {**STAGE, "per_device_train_batch_size": 4},
    "methods": {method: {**options, "learning_rates": [1e-3]} for method, options in METHODS.items()},
}


@pytest.fixture
def here(monkeypatch):
    """The data `lab` with 24 rows per split, and jobs that run in this process. Their names are noted."""

    def few_rows(*args):
        splits = load_sample_dataset(*args)
        return datasets.DatasetDict({split: rows.select(range(24)) for split, rows in splits.items()})

    def run_cells(work, parts, folder):
        results = {}
        for name, options in parts.items():
            results[name] = jobs.read_json(folder / name / "result.json")
            if results[name] is None:
                ran.append(name)
                jobs._run_cell(work, options, folder / name)
                results[name] = jobs.read_json(folder / name / "result.json")
        return results

    ran = []
    for module in (load_data, sft):
        monkeypatch.setattr(module, "load_sample_dataset", few_rows)
    for module in (arena, experiment):
        monkeypatch.setattr(module, "run_cells", run_cells)
    return ran


def write(folder, **changes):
    path = folder / "arena.yaml"
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return str(path)


@pytest.mark.slow
def test_a_whole_run_goes_on_where_it_was_stopped(here, tmp_path, capsys):
    out, config = tmp_path / "out", write(tmp_path)
    argv = ["arena", "--config", config, "--output_dir", str(out)]
    assert main(argv) == 0
    names = ["sft", "best_of_n", *(f"{method}_lr-0.001" for method in METHODS)]
    assert here == ["sft", "reward", *(f"{name}_seed-1" for name in names)]
    results = json.loads((out / "arena.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in results["rows"]] == ["sft", "best_of_n", *METHODS]
    assert [row["chosen"] for row in results["rows"]] == [False, False, *[True] * 4]
    assert {*results["versions"]} == {"torch", "transformers", "trl"} and results["num_prompts"] == 24
    for row in results["rows"]:
        assert row["seeds"] == [1] and row["numbers"]["correct"]["values"] == [0.0]
        if row["method"] in ONLINE:
            tokens = row["numbers"]["tokens"]["values"]
            assert row["numbers"]["trainer_tokens"]["values"] == tokens and all(60 <= x < 60 + 8 * 4 for x in tokens)
    assert {path.name for path in out.iterdir()} == {
        *("run.json", "sft", "reward", "cells", "arena.json", "arena.md", "arena.png")
    }
    assert "GRPO with learning rate 0.001, chosen by the reward model" in capsys.readouterr().out

    here.clear()
    assert main(argv) == 2 and "holds another run" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0 and here == []
    (out / "arena.json").unlink()
    (out / "cells" / "grpo_lr-0.001_seed-1" / "result.json").unlink()
    assert main([*argv, "--resume"]) == 0 and here == ["grpo_lr-0.001_seed-1"]
    again = json.loads((out / "arena.json").read_text(encoding="utf-8"))
    for before, after in zip(results["rows"], again["rows"], strict=True):
        for numbers in (before["numbers"], after["numbers"]):
            del numbers["seconds"], numbers["processor_seconds"]
        assert before == after
    write(tmp_path, budget_tokens=61)
    assert main([*argv, "--resume"]) == 2 and "`budget_tokens` differs" in capsys.readouterr().err


def first(completions, **_):
    return [1.0]


def words(completions, **_):
    return [len(completion[-1]["content"].split()[0]) for completion in completions]


DPO = {"learning_rates": [1e-3]}
GRPO = CONFIG["methods"]["grpo"]
UNEVEN = {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "num_iterations": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_token": 3}, "unknown key `budget_token`; did you mean `budget_tokens`?"),
        ({"budget_tokens": "many"}, "`budget_tokens`: input should be a valid integer, not 'many'"),
        ({"budget_tokens": 0}, "`budget_tokens`: input should be greater than 0"),
        ({"judge": None}, "`judge` is missing"),
        ({"judge": "hf_instructgpt.data.gold"}, "hf_instructgpt.data.gold cannot be imported"),
        (
            {"judge": f"{__name__}.first"},
            "row 1, responses cannot be scored: the judge first returned",
        ),
        (
            {"judge": f"{__name__}.words"},
            "row 1, responses cannot be scored: the judge words raised IndexError",
        ),
        ({"missing_eos_penalty": float("nan")}, "`missing_eos_penalty`: input should be a finite number, not nan"),
        ({"prompts": {"dataset_name": "lab", "dataset_test_split": "train"}}, "among those of `prompts` (train)"),
        ({"methods": {"dpo": {**DPO, "num_generations": 1}}}, "dpo: `num_generations` must be 2 or more, not 1"),
        ({"methods": {"dpo": {"learning_rates": [float("inf")]}}}, "`methods.dpo.learning_rates.0`: input should be"),
        ({"judge": "a/model"}, "`judge`: a/model cannot be imported"),
        ({"seeds": []}, "`seeds`: needs 1 or more different values, not []"),
        ({"seeds": [1, 1]}, "`seeds`: needs 1 or more different values, not [1, 1]"),
        ({"sft": None}, "give either `sft`, to train that model, or `sft_model`"),
        ({"reward_model": "reward"}, "give either `reward`, to train that model, or `reward_model`"),
        ({"sft": {**CONFIG["sft"], "output_dir": "x"}}, "`sft.output_dir` is set by the run itself"),
        ({"sft": {**CONFIG["sft"], "use_peft": True}}, "sft: `use_peft`: experiments train full models"),
        ({"sft": {**CONFIG["sft"], "learnin_rate": 1.0}}, "sft: unknown key `learnin_rate`. Did you mean"),
        ({"reward": {**STAGE, "dataset_name": None}}, "`dataset_name` is missing"),
        ({"prompts": {"dataset": "lab"}}, "prompts: unknown key `dataset`; did you mean `dataset_name`?"),
        ({"prompts": {}}, "`dataset_name` is missing"),
        ({"prompts": {"dataset_name": "lab", "dataset_test_split": "tset"}}, "has no split `tset`; it has train"),
        ({"max_completion_length": 40}, "and an answer of 40 do not fit"),
        ({"methods": {}}, "`methods`: dictionary should have at least 1 item"),
        ({"methods": {"gpro": DPO}}, "`methods.gpro.[key]`: input should be 'dpo', 'rloo', 'grpo' or 'ppo'"),
        ({"methods": {"dpo": None}}, "`methods.dpo`: input should be a valid dictionary"),
        ({"methods": {"dpo": {}}}, "`methods.dpo.learning_rates` is missing"),
        (
            {"methods": {"dpo": {"learning_rates": ["high"]}}},
            "`methods.dpo.learning_rates.0`: input should be a valid n",
        ),
        (
            {"methods": {"dpo": {"learning_rates": [1e-3, 1e-3]}}},
            "`methods.dpo.learning_rates`: needs 1 or more different values",
        ),
        ({"methods": {"dpo": {**DPO, "betaa": 1}}}, "methods, dpo: unknown key `betaa`. Did you mean `beta`?"),
        ({"methods": {"dpo": {**DPO, "kl_coef": 1}}}, "unknown key `kl_coef`. DPOConfig has none of that name."),
        ({"methods": {"dpo": {**DPO, "seed": 1}}}, "methods, dpo: `seed` is set by the arena"),
        ({"methods": {"ppo": {**DPO, "warmup_steps": 1}}}, "`warmup_steps` is set by the arena"),
        ({"methods": {"ppo": {**DPO, "max_steps": 1}}}, "methods, ppo: `max_steps` is set by the arena"),
        ({"methods": {"grpo": {**GRPO, "num_generations": 7}}}, "must be divisible by num_generations (7)"),
        (
            {"methods": {"grpo": {**GRPO, "per_device_train_batch_size": 400}}},
            "a rollout takes 50 prompts, and there are",
        ),
        (
            {
                "methods": {
                    "grpo": {**GRPO, "gradient_accumulation_steps": 2, "steps_per_generation": 3, "num_iterations": 1}
                }
            },
            "must be a multiple of `gradient_accumulation_steps`",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(here, tmp_path, capsys, changes, message):
    argv = ["arena", "--config", write(tmp_path, **changes), "--output_dir", str(tmp_path / "out")]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert any(part in err for part in message.split("|")), err
    assert here == [] and not (tmp_path / "out").exists()


def test_models_that_are_there_are_checked(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"sft": None, "reward": None, "sft_model": setting.sft_model, "prompts": setting.prompts}
    Arena(write(tmp_path, reward_model=setting.reward_model, **given), output_dir="out")
    with pytest.raises(InputError, match="`reward_model` gives 2 scores"):
        Arena(write(tmp_path, reward_model=setting.sft_model, **given), output_dir="out")
    other = CharGPTConfig(vocab_size=9, num_labels=1, **SIZES)
    CharGPTForSequenceClassification(other).save_pretrained(tmp_path / "other")
    TOKENIZER.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="knows 9 tokens: it must give 1 score and share"):
        Arena(write(tmp_path, reward_model="other", **given), output_dir="out")
    (tmp_path / "other" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="`sft_model`: other is an adapter"):
        Arena(write(tmp_path, reward_model=setting.reward_model, **{**given, "sft_model": "other"}), output_dir="out")


def test_a_learning_rate_is_chosen_by_the_validation_split_or_else_by_the_training_prompts(setting, tmp_path):
    prompts = arena_methods.load_prompts(setting.prompts)
    assert prompts["validation"][0] == ROWS["validation"][0] and prompts["test"][0] == ROWS["test"][0]
    swapped = {**setting.prompts, "dataset_test_split": "validation"}
    prompts = arena_methods.load_prompts(swapped)
    assert prompts["validation"][0] == ROWS["train"][0] and prompts["test"][0] == ROWS["validation"][0]
