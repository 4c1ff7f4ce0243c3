"""RankingRewardTrainer: the K-way loss by hand and against TRL's, which pairs count and how much, forwards, runs."""

import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors import safe_open
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer

from hf_instructgpt.char_gpt import (
    CharGPTConfig,
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTTokenizer,
)
from hf_instructgpt.data.columns import ranked_pairs
from hf_instructgpt.errors import InputError
from hf_instructgpt.functional import pair_loss
from hf_instructgpt.models.loading import load_reward_model
from hf_instructgpt.models.surgery import independent_copy
from hf_instructgpt.reward.calibration import calibrate
from hf_instructgpt.reward.config import RankingRewardConfig
from hf_instructgpt.reward.label_noise import most_likely_noise, noise_by_agreement, repeated_judgements
from hf_instructgpt.reward.ranking_trainer import RankingRewardTrainer
from hf_instructgpt.reward.tokenized_rankings import RankingCollator
from hf_instructgpt.scoring.reward_models import reward_model_scores
from hf_instructgpt.text import pad_rows

EOS = 66
TOKENIZER = CharGPTTokenizer.from_document()


class Outputs(dict):
    __getattr__ = dict.__getitem__


class FirstToken(torch.nn.Module):
    """A reward model whose reward is a tenth of the response's first id; counts the rows it is asked for."""

    rows = 0

    def forward(self, input_ids, attention_mask, use_cache):
        self.rows += len(input_ids)
        return Outputs(logits=input_ids[:, :1] / 10)


def reward_model(seed=0, **config):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_labels": 1}
    return CharGPTForSequenceClassification(CharGPTConfig(**(sizes | config)))


def ranking(prompt, responses, ranks):
    return {"prompt": prompt, "responses": responses, "ranks": ranks}


ROWS = [ranking("ab", ["cc", "d", "eee"], [1, 2, 2]), ranking("f", ["g", "hi"], [2, 1])]


def make(tmp_path, rows=ROWS, model=None, cls=RankingRewardTrainer, tokenizer=TOKENIZER, eval_rows=None, **options):
    names = ("calibration_dataset", "sft_model", "peft_config")
    more = {name: options.pop(name) for name in names if name in options}
    defaults = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,  # on by default in RewardConfig
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "max_length": 50,
    }
    return cls(
        model or reward_model(),
        RankingRewardConfig(**(defaults | options))
        if cls is RankingRewardTrainer
        else RewardConfig(**defaults, **options),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(eval_rows) if eval_rows else None,
        processing_class=tokenizer,
        **more,
    )


def loss_of(trainer, rows, model=None):
    return trainer.compute_loss(model or FirstToken(), RankingCollator(0)(rows)).item()


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


# ---- Pairs ---------------------------------------------------------------------------------------------------------


def test_ties_and_identical_responses_give_no_pair():
    assert ranked_pairs(["a", "b", "c"], [1, 2, 2]) == [(0, 1), (0, 2)]
    assert ranked_pairs(["a", "b", "c"], [3, 1, 2]) == [(1, 0), (1, 2), (2, 0)]
    assert ranked_pairs(["a", "a", "b"], [1, 2, 3]) == [(0, 2), (1, 2)]
    assert ranked_pairs(["a", "b"], [1, 1]) == []


def test_collator_by_hand():
    batch = RankingCollator(0)(
        [
            {"response_ids": [[1, 2], [3], [4, 5, 6]], "ranks": [2, 1, 1]},
            {"response_ids": [[7], [7]], "ranks": [1, 2]},  # identical: no pair
            {"response_ids": [[8], [9]], "ranks": [1, 2]},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6], [7, 0, 0], [7, 0, 0], [8, 0, 0], [9, 0, 0]]
    assert batch["attention_mask"].sum(-1).tolist() == [2, 1, 3, 1, 1, 1, 1]
    assert (batch["better"].tolist(), batch["worse"].tolist()) == ([1, 2, 5], [0, 0, 6])
    # Two rows with pairs; the first has two.
    assert batch["weight"].tolist() == [0.25, 0.25, 0.5]
    assert batch["margin"].tolist() == [0, 0, 0]


# ---- The loss ------------------------------------------------------------------------------------------------------


def test_loss_of_three_responses_with_a_tie_by_hand(tmp_path):
    # Rewards 2, 1 and 0; the first is best, the others tie: margins 1 and 2.
    rows = [{"response_ids": [[20, EOS], [10, EOS], [0, EOS]], "ranks": [1, 2, 2]}]
    expected = -(log_sigmoid(1.0) + log_sigmoid(2.0)) / 2
    assert loss_of(make(tmp_path), rows) == pytest.approx(expected, rel=1e-5)


def test_each_row_counts_once_however_many_pairs_it_has(tmp_path):
    rows = [
        {"response_ids": [[20], [10], [0]], "ranks": [1, 2, 3]},  # margins 1, 2, 1
        {"response_ids": [[10], [40]], "ranks": [1, 2]},  # margin -3
        {"response_ids": [[10], [40]], "ranks": [1, 1]},  # no pair: as if it were not there
    ]
    first = -(2 * log_sigmoid(1.0) + log_sigmoid(2.0)) / 3
    assert loss_of(make(tmp_path), rows) == pytest.approx((first - log_sigmoid(-3.0)) / 2, rel=1e-5)


def test_the_centring_option_punishes_the_pairs_squared_sum(tmp_path):
    rows = [{"response_ids": [[20], [10], [0]], "ranks": [1, 2, 2]}]
    plain = loss_of(make(tmp_path), rows)
    centred = loss_of(make(tmp_path, center_rewards_coefficient=0.1), rows)
    assert centred - plain == pytest.approx(0.1 * ((2 + 1) ** 2 + (2 + 0) ** 2) / 2, rel=1e-4)


def test_labels_that_may_be_wrong_by_hand(tmp_path):
    """Margins 1 and -3: with a tenth of the labels wrong, -log(.9 s(d) + .1 s(-d)), s(1) = .73106, s(-3) = .04743."""
    rows = [{"response_ids": [[20], [10]], "ranks": [1, 2]}, {"response_ids": [[10], [40]], "ranks": [1, 2]}]
    expected = -(math.log(0.9 * 0.731059 + 0.1 * 0.268941) + math.log(0.9 * 0.047426 + 0.1 * 0.952574)) / 2
    assert loss_of(make(tmp_path, label_noise=0.1), rows) == pytest.approx(expected, rel=1e-5)
    plain = -(log_sigmoid(1.0) + log_sigmoid(-3.0)) / 2
    assert loss_of(make(tmp_path, label_noise=0.0), rows) == pytest.approx(plain, rel=1e-5)


def test_a_wrong_label_cannot_pull_far():
    differences = torch.tensor([-1e4, -50.0, 50.0, 1e4], requires_grad=True)
    losses = pair_loss(differences, label_noise=0.1)
    assert losses.tolist() == pytest.approx([-math.log(0.1)] * 2 + [-math.log(0.9)] * 2, rel=1e-5)
    losses.sum().backward()
    assert differences.grad.abs().max() < 1e-6
    assert pair_loss(torch.tensor([-50.0])).item() == pytest.approx(50.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_noise": 0.5}, "`label_noise` must be 0 or more and below 0.5"),
        ({"label_noise": "nan"}, "`label_noise` must be 0 or more and below 0.5"),
        ({"label_noise": "Auto"}, "`label_noise` must be a number or `auto`, not 'Auto'"),
        ({"lm_coef": -1}, "`lm_coef` must be 0"),
        ({"logprob_coef": float("nan")}, "`logprob_coef` must be 0"),
    ],
)
def test_options_out_of_range_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


# ---- The share of wrong labels, estimated --------------------------------------------------------------------------


@pytest.mark.parametrize(("same", "compared", "noise"), [(82, 100, 0.1), (100, 100, 0.0), (68, 100, 0.2)])
def test_noise_by_agreement_by_hand(same, compared, noise):
    """With e = 0.1, two people agree on 0.9 * 0.9 + 0.1 * 0.1 = 0.82 of the pairs; with 0.2, on 0.64 + 0.04."""
    assert noise_by_agreement(same, compared) == pytest.approx(noise)


def test_annotators_who_agree_no_more_than_chance_are_refused():
    with pytest.raises(InputError, match="agree on 50 of 100 pairs, no more than chance"):
        noise_by_agreement(50, 100)


def test_the_most_likely_noise_by_hand():
    """Far from 0 a pair says whether its label is right: of four, one is wrong. Near 0, e = 0: all signs are right."""
    assert most_likely_noise(torch.tensor([50.0, 50.0, -50.0, 50.0])) == pytest.approx(0.25, abs=1e-6)
    assert most_likely_noise(torch.tensor([0.5, 0.5, 0.5])) == pytest.approx(0.0, abs=1e-6)
    assert 0.5 - 1e-6 < most_likely_noise(torch.tensor([-50.0, -50.0, 50.0])) < 0.5
    # d = log 4: sigmoid(d) = 0.8 and sigmoid(-d) = 0.2, so one pair in n is wrong where 0.8 - 0.6 e = 1 - 1 / n.
    d = math.log(4)
    assert most_likely_noise(torch.tensor([d, d, d, -d])) == pytest.approx(0.05 / 0.6, abs=1e-6)


def test_judgements_of_one_pair_by_several_annotators_are_counted_by_hand():
    """A pair judged 1, 1, 2: one of three pairs of judgements agrees. Ties and one annotator's first do not count."""
    a, b, c = [1, EOS], [2, EOS], [3, EOS]
    rows = [
        {"response_ids": [a, b, c], "ranks": [1, 2, 2]},  # a b, a c
        {"response_ids": [b, a], "ranks": [2, 1]},  # a b
        {"response_ids": [a, b], "ranks": [2, 1]},  # b a
        {"response_ids": [c, b], "ranks": [1, 1]},
    ]
    assert repeated_judgements(rows) == (1, 3)
    names = ["ann", "bob", "ann", "bob"]
    named = [{**row, "annotator": name} for row, name in zip(rows, names, strict=True)]
    assert repeated_judgements(named) == (0, 1)


def test_agreement_of_annotators_gives_the_noise_and_nothing_is_held_out(tmp_path):
    rows = []
    for i in range(30):
        prompt = "abcdefghijklmno"[i % 15] * (1 + i // 15)
        rows += [{**ranking(prompt, ["d", "e", "f", "g"], [1, 2, 3, 4]), "annotator": "ann"}]
        rows += [{**ranking(prompt, ["d", "e", "f", "g"], [2, 1, 3, 4]), "annotator": "bob"}]
    trainer = make(tmp_path, rows, label_noise="auto", max_steps=1)
    assert trainer.label_noise == pytest.approx((1 - (2 * 5 / 6 - 1) ** 0.5) / 2)  # five of six pairs agree
    assert len(trainer.train_dataset) == 60 and set(trainer.train_dataset.column_names) == {"response_ids", "ranks"}
    trainer.train()
    assert trainer.label_noise == pytest.approx((1 - (2 / 3) ** 0.5) / 2)
    assert trainer.made().hyperparameters["estimated_label_noise"] == round(trainer.label_noise, 4)
    expected = pair_loss(torch.tensor([1.0]), label_noise=trainer.label_noise).item()
    assert loss_of(trainer, [{"response_ids": [[20], [10]], "ranks": [1, 2]}]) == pytest.approx(expected, rel=1e-5)


def noisy(n=40):
    """Fewer of the letter x is better; every fourth ranking is the wrong way round."""
    prompts = [a + b for a in "abcdefg" for b in "abcdefg"][:n]
    return [ranking(p, ["d", "dxxx"], [1, 2] if i % 4 else [2, 1]) for i, p in enumerate(prompts)]


AUTO = {"label_noise": "auto", "num_train_epochs": 3, "per_device_train_batch_size": 4}


def test_a_tenth_of_the_prompts_is_held_out_by_the_seed_alone(tmp_path):
    rows = noisy() + noisy()
    trainers = [make(tmp_path, rows, seed=seed, **AUTO) for seed in (0, 0, 1)]
    held = [[*map(str, trainer.noise_dataset["response_ids"])] for trainer in trainers]
    assert held[0] == held[1] != held[2] and 2 <= len(held[0]) <= 20
    for trainer, theirs in zip(trainers, held, strict=True):
        kept = {*map(str, trainer.train_dataset["response_ids"])}
        assert not kept & {*theirs} and len(trainer.train_dataset) + len(theirs) == 80
        assert set(trainer.train_dataset.column_names) == {"response_ids", "ranks"}


@pytest.mark.parametrize("unit", [1.0, 2.0])
def test_held_out_rankings_give_the_noise_of_each_epoch_but_the_first(tmp_path, unit):
    trainer = make(tmp_path, noisy(), seed=1, **AUTO)
    trainer.model.config.score_scale = unit
    seen, estimated = [], []

    class Spy(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append((int(state.epoch), trainer.label_noise))

        def on_epoch_end(self, args, state, control, **kwargs):
            rows = list(trainer.noise_dataset)
            scores = [reward_model_scores(trainer.model.eval(), row["response_ids"], batch_size=2) for row in rows]
            signs = [1 if row["ranks"] == [1, 2] else -1 for row in rows]
            better = [unit * sign * (first - second) for sign, (first, second) in zip(signs, scores, strict=True)]
            estimated.append(most_likely_noise(torch.stack(better)))

    trainer.add_callback(Spy())
    trainer.train()
    by_epoch = dict(seen)
    assert by_epoch[0] == 0.0 and {epoch for epoch, _ in seen} == {0, 1, 2}
    assert [by_epoch[1], by_epoch[2]] == pytest.approx(estimated[:2], abs=1e-5) and 0.1 < by_epoch[2] < 0.5
    logs = [(entry["epoch"], entry["label_noise"]) for entry in trainer.state.log_history if "loss" in entry]
    assert [noise for epoch, noise in logs if epoch > 2.01] == [by_epoch[2]] * len([x for x, _ in logs if x > 2.01])
    assert trainer.made().hyperparameters["label_noise"] == "auto"


def test_a_resumed_run_goes_on_with_the_noise_that_it_had(tmp_path):
    """Saved in the middle of the second epoch, at its end, and in the third: the rest is bit by bit the same."""
    options = {**AUTO, "seed": 1, "save_strategy": "steps", "save_steps": 3}
    whole = make(tmp_path / "whole", noisy(), **options)
    whole.train()
    per_epoch = whole.state.max_steps // 3
    assert whole.label_noise > 0.1
    for step in (per_epoch + 3, 2 * per_epoch, 2 * per_epoch + 3):
        resumed = make(tmp_path / "resumed", noisy(), **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        for name, tensor in whole.model.state_dict().items():
            assert tensor.equal(resumed.model.state_dict()[name]), (step, name)
        noises = [[entry.get("label_noise") for entry in t.state.log_history] for t in (whole, resumed)]
        assert noises[0] == noises[1]
    other = make(tmp_path / "other", noisy(), **{**options, "label_noise": 0.1})
    with pytest.raises(InputError, match=r"another `label_noise` \(auto, now 0.1\)"):
        other.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (noisy(), {"label_noise": "auto", "num_train_epochs": 1}, "from the second epoch on, and `num_train_epochs`"),
        (noisy(), {"label_noise": "auto", "max_steps": 3}, "`max_steps` is 3, of [0-9]+ in an epoch: train for more"),
        (ROWS, AUTO, "2 rankings are too few"),
    ],
)
def test_where_nothing_can_be_estimated_it_is_said(tmp_path, rows, options, message):
    with pytest.raises(InputError, match=message):
        make(tmp_path, rows, **options)


# ---- The language-modelling loss -----------------------------------------------------------------------------------


def language_model(seed=0, **config):
    """A language model with the trunk of `reward_model(seed)`."""
    torch.manual_seed(seed + 1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = CharGPTForCausalLM(CharGPTConfig(**(sizes | config)))
    model.model.load_state_dict(reward_model(seed, **config).model.state_dict())
    return model.eval()


@pytest.mark.parametrize("packed", [True, False])
def test_the_language_modelling_loss_is_of_the_best_responses(tmp_path, packed):
    """Against the language model's own log-probs, token by token in float64; two rows, one with two best responses."""
    rows = [ranking("ab", ["cc", "d", "eee"], [1, 2, 1]), ranking("fgh", ["g", "h" * 30], [2, 1])]
    causal, model = language_model(dropout=0.0), reward_model(dropout=0.0)
    trainer = make(tmp_path, rows, model, lm_coef=2.0, sft_model=causal)
    trainer._packs = packed and trainer._packs
    plain = make(tmp_path, rows, model)
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    model.train()
    loss, without = (some.compute_loss(model, batch).item() for some in (trainer, plain))
    expected = 0.0
    for prompt, best in (("ab", ["cc", "eee"]), ("fgh", ["h" * 30])):
        losses = []
        for response in best:
            ids = TOKENIZER(prompt + response)["input_ids"] + [EOS]
            with torch.no_grad():
                logprobs = causal.double()(torch.tensor([ids])).logits[0].log_softmax(-1)
            losses += [-logprobs[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))]
        expected += sum(losses) / len(losses) / 2
    assert loss - without == pytest.approx(2 * expected, rel=1e-5)
    assert trainer._metrics["train"]["lm_loss"] == pytest.approx([expected], rel=1e-5)
    assert trainer._packs == packed  # both ways of asking the model were tried


def test_a_cut_text_keeps_the_place_where_its_response_begins(tmp_path):
    trainer = make(
        tmp_path,
        [ranking("abcd", ["ef", "efghij"], [1, 2])],
        lm_coef=1.0,
        sft_model=language_model(),
        max_length=6,
    )
    (row,) = trainer.train_dataset
    assert [len(ids) for ids in row["response_ids"]] == [6, 6] and row["response_start"] == [3, 0]
    batch = trainer.data_collator([row])
    assert batch["next_ids"].tolist()[0] == [-100, -100, *row["response_ids"][0][3:], -100]
    assert batch["next_ids"][1].eq(-100).all() and batch["next_weight"][0, 2].item() == pytest.approx(1 / 3)


def test_the_head_stays_as_it_is_and_leaves_no_trace(tmp_path):
    language_model().save_pretrained(tmp_path / "sft")
    TOKENIZER.save_pretrained(tmp_path / "sft")
    trainer = make(tmp_path / "reward", ROWS, str(tmp_path / "sft"), lm_coef=1.0, eval_rows=ROWS, max_steps=3)
    head = language_model().lm_head.state_dict()
    before = trainer.evaluate()["eval_lm_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_lm_loss"] < before
    assert all(tensor.equal(trainer.lm_head.state_dict()[name]) for name, tensor in head.items())
    trainer.save_model()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert plain.state_dict().keys() == reward_model().state_dict().keys()
    hooks = [hook for module in trainer.model.modules() for hook in module._forward_hooks.values()]
    assert not [hook for hook in hooks if "last_hidden_state" in hook.__qualname__]
    with pytest.raises(InputError, match="`lm_coef` needs `sft_model`"):
        make(tmp_path, ROWS, lm_coef=1.0)


@pytest.mark.parametrize("packed", [True, False])
def test_the_log_probs_are_regressed_at_each_token_of_each_response(tmp_path, packed):
    """In float64, token by token: two rows, the start model's log-probs, a map that is not zero."""
    rows = [ranking("ab", ["cc", "d", "eee"], [1, 2, 1]), ranking("fgh", ["g", "h" * 30], [2, 1])]
    causal, model = language_model(dropout=0.0), reward_model(dropout=0.0)
    with torch.no_grad():
        causal.lm_head.weight *= 8  # some log-probs are below -6
    trainer = make(tmp_path, rows, model, logprob_coef=2.0, sft_model=causal)
    trainer._packs = packed and trainer._packs
    plain = make(tmp_path, rows, reward_model(dropout=0.0))
    probe = trainer.logprob_map
    assert probe.weight.eq(0).all() and probe.bias.eq(0).all() and probe.weight.requires_grad
    torch.nn.init.normal_(probe.weight)
    torch.nn.init.constant_(probe.bias, -0.5)
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    model.train()
    plain.model.train()
    rankings = plain._prepare_inputs(plain.data_collator(list(plain.train_dataset)))
    loss = trainer.compute_loss(model, batch).item()
    without = plain.compute_loss(plain.model, rankings).item()
    expected, num_clamped = 0.0, 0
    body = reward_model(dropout=0.0).model.double().eval()
    for row in rows:
        errors = []
        for response in row["responses"]:
            ids = torch.tensor([TOKENIZER(row["prompt"] + response)["input_ids"] + [EOS]])
            with torch.no_grad():
                logprobs = causal.double()(ids).logits[0].log_softmax(-1)
                hidden = body(ids).last_hidden_state[0]
            for t in range(len(row["prompt"]), ids.shape[1]):
                target = max(logprobs[t - 1, ids[0, t]].item(), -6.0)
                num_clamped += target == -6.0
                predicted = hidden[t] @ probe.weight[0].detach().double() - 0.5
                errors.append((predicted.item() - target) ** 2)
        expected += sum(errors) / len(errors) / 2
    assert loss - without == pytest.approx(2 * expected, rel=1e-5)
    assert trainer._metrics["train"]["logprob_loss"] == pytest.approx([expected], rel=1e-5)
    assert num_clamped and trainer._packs == packed


def test_the_map_of_log_probs_learns_and_leaves_no_trace(tmp_path):
    language_model().save_pretrained(tmp_path / "sft")
    TOKENIZER.save_pretrained(tmp_path / "sft")
    options = {"logprob_coef": 1.0, "eval_rows": ROWS, "max_steps": 3, "save_strategy": "steps", "save_steps": 3}
    trainer = make(tmp_path / "reward", ROWS, str(tmp_path / "sft"), **options)
    before = trainer.evaluate()["eval_logprob_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_logprob_loss"] < before
    assert trainer.logprob_map.weight.ne(0).all()
    saved = tmp_path / "reward" / "checkpoint-3" / "model.safetensors"
    with safe_open(saved, framework="pt") as tensors:
        assert {*tensors.keys()} == {*reward_model().state_dict()} == {*trainer.model.state_dict()}


def test_a_run_with_a_map_of_log_probs_resumes_to_the_same_bytes(tmp_path):
    def trainer(name):
        terms = {"logprob_coef": 1.0, "lm_coef": 0.5, "sft_model": language_model()}
        return make(tmp_path / name, ROWS * 2, save_strategy="steps", save_steps=2, max_steps=4, **terms)

    (whole := trainer("whole")).train()
    (resumed := trainer("resumed")).train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for a, b in ((whole.model, resumed.model), (whole.logprob_map, resumed.logprob_map)):
        for name, tensor in a.state_dict().items():
            assert tensor.equal(b.state_dict()[name]), name


@pytest.mark.parametrize("adapter", [False, True])
def test_where_log_probs_come_from(tmp_path, adapter):
    """From the model given, whatever the reward model is; an adapter trains the map too."""
    rows = [ranking("ab", ["cc", "d"], [1, 2])]
    options = {"peft_config": LoraConfig(task_type="SEQ_CLS", target_modules=["qkv_proj"])} if adapter else {}
    trainer = make(tmp_path, rows, logprob_coef=1.0, sft_model=language_model(3, dropout=0.0), max_steps=2, **options)
    (row,) = trainer.train_dataset
    assert [len(x) for x in row["response_logprobs"]] == [3, 2] and "response_start" not in row
    trainer.train()
    assert trainer.logprob_map.weight.ne(0).all()
    with pytest.raises(InputError, match="`logprob_coef` needs `sft_model`"):
        make(tmp_path, rows, logprob_coef=1.0)
    tokenized = [{"response_ids": [[1, EOS], [2, EOS]], "ranks": [1, 2]}]
    with pytest.raises(InputError, match="`logprob_coef` needs rows with `prompt`"):
        make(tmp_path, tokenized, logprob_coef=1.0, sft_model=language_model())


def test_a_batch_without_a_pair_has_a_loss_of_zero_and_a_gradient_of_zero(tmp_path):
    model = reward_model()
    trainer = make(tmp_path, model=model)
    batch = RankingCollator(0)([{"response_ids": [[1, EOS], [2, EOS]], "ranks": [1, 1]}])
    loss = trainer.compute_loss(model, trainer._prepare_inputs(batch))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad.eq(0).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("coefficient", [None, 0.1])
def test_of_two_responses_it_is_trls_loss(tmp_path, coefficient):
    pairs = [{"prompt": "ab", "chosen": "cde", "rejected": "f"}, {"prompt": "g", "chosen": "h", "rejected": "ij"}]
    rankings = [
        ranking("ab", ["cde", "f"], [1, 2]),
        ranking("g", ["ij", "h"], [2, 1]),
    ]
    losses = []
    for cls, rows in ((RewardTrainer, pairs), (RankingRewardTrainer, rankings), (RankingRewardTrainer, pairs)):
        model = reward_model().eval()
        trainer = make(tmp_path, rows, model, cls, center_rewards_coefficient=coefficient)
        model.eval()
        batch = trainer.data_collator(
            [{k: v for k, v in row.items() if k != "prompt"} for row in trainer.train_dataset]
        )
        losses.append(trainer.compute_loss(model, trainer._prepare_inputs(batch)).item())
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_a_margin_is_subtracted_as_in_trl(tmp_path):
    pairs = [
        {"prompt": "ab", "chosen": "cde", "rejected": "f", "margin": 0.5},
        {"prompt": "g", "chosen": "h", "rejected": "ij", "margin": 2.0},
    ]
    losses = []
    for cls in (RewardTrainer, RankingRewardTrainer):
        model = reward_model()
        trainer = make(tmp_path, pairs, model, cls)
        model.eval()
        rows = [{k: v for k, v in row.items() if k != "prompt"} for row in trainer.train_dataset]
        batch = trainer._prepare_inputs(trainer.data_collator(rows))
        losses.append(trainer.compute_loss(model, batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # By hand, and of a ranking: rewards 2, 1 and 0, margins of the rewards 1, 2 and 1, less 0.5.
    rows = [{"response_ids": [[20], [10], [0]], "ranks": [1, 2, 3], "margin": 0.5}]
    expected = -(2 * log_sigmoid(0.5) + log_sigmoid(1.5)) / 3
    assert loss_of(make(tmp_path), rows) == pytest.approx(expected, rel=1e-5)


def test_one_forward_a_response_however_many_pairs(tmp_path):
    model = FirstToken()
    rows = [{"response_ids": [[i] for i in range(9)], "ranks": list(range(1, 10))}]
    assert len(RankingCollator(0)(rows)["better"]) == 36
    loss_of(make(tmp_path), rows, model)
    assert model.rows == 9


# ---- Data ----------------------------------------------------------------------------------------------------------


def ids_of(trainer):
    return [list(row["response_ids"]) for row in trainer.train_dataset]


def test_text_rows_end_with_one_end_of_text(tmp_path):
    trainer = make(tmp_path, [ranking("ab", ["c", "d<eos>"], [1, 2])])
    assert ids_of(trainer) == [[TOKENIZER("abc<eos>")["input_ids"], TOKENIZER("abd<eos>")["input_ids"]]]
    assert set(trainer.train_dataset.column_names) == {"response_ids", "ranks"}


def test_conversational_rows_go_through_the_chat_template(tmp_path):
    tokenizer = CharGPTTokenizer.from_texts(["abcd"])
    rows = [
        {
            "prompt": [{"role": "user", "content": "ab"}],
            "responses": [[{"role": "assistant", "content": text}] for text in ("c", "dd")],
            "ranks": [2, 1],
        }
    ]
    trainer = make(tmp_path, rows, reward_model(vocab_size=len(tokenizer)), tokenizer=tokenizer)
    texts = [tokenizer.decode(ids) for ids in ids_of(trainer)[0]]
    assert texts == ["指令：ab 回答：c<eos>", "指令：ab 回答：dd<eos>"]


def test_long_texts_lose_their_beginning_and_are_counted(tmp_path, caplog):
    rows = [ranking("ab", ["cdefgh", "i", "jk"], [1, 2, 3]), ranking("l", ["m", "n"], [1, 2])]
    trainer = make(tmp_path, rows, max_length=4)
    texts = [["fgh<eos>", "abi<eos>", "bjk<eos>"], ["lm<eos>", "ln<eos>"]]
    assert ids_of(trainer) == [[TOKENIZER(text)["input_ids"] for text in row] for row in texts]
    message = "2 of 5 texts were longer than max_length = 4 tokens and lost their beginning; 1 of them"
    assert message in caplog.text


def test_rows_without_a_pair_are_left_out_and_counted(tmp_path, caplog):
    rows = [*ROWS, ranking("a", ["b", "c"], [1, 1]), ranking("a", ["b", "b"], [1, 2])]
    # The same at their ends, which is all that a short context holds.
    trainer = make(tmp_path, [*rows, ranking("a", ["xyzzy", "uyzzy"], [1, 2])], max_length=5)
    assert len(trainer.train_dataset) == 2
    assert "3 of 5 rows are skipped" in caplog.text
    with pytest.raises(InputError, match=r"`train_dataset`: no row has two responses that differ in rank"):
        make(tmp_path, rows[2:])


def test_text_that_answers_messages_is_the_assistant_s(tmp_path):
    tokenizer = CharGPTTokenizer.from_texts(["abcd"])
    prompt = [{"role": "user", "content": "ab"}]
    messages = [[{"role": "assistant", "content": text}] for text in ("c", "dd")]
    ids = []
    for responses in (["c", "dd"], messages):
        rows = [{"prompt": prompt, "responses": responses, "ranks": [2, 1]}]
        ids.append(ids_of(make(tmp_path, rows, reward_model(vocab_size=len(tokenizer)), tokenizer=tokenizer)))
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ranking("ab", ["c", "d"], [True, False]), r"row 1, column 'ranks': \[True, False\]"),
        ({"prompt": True, "responses": ["c", "d"], "ranks": [1, 2]}, r"column 'prompt': True \(bool\) where text"),
        ({"prompt": "ab", "chosen": "c", "rejected": ""}, "column 'rejected': the text is empty"),
        (ranking("ab", ["c"], [1]), "a ranking needs at least two"),
    ],
)
def test_rows_that_are_no_rankings_are_named(tmp_path, row, message):
    with pytest.raises(InputError, match="`train_dataset`.*" + message):
        make(tmp_path, [row])


# ---- Calibration ---------------------------------------------------------------------------------------------------

DEMONSTRATIONS = [{"prompt": "ab", "completion": text} for text in ("c", "de", "fgh")]


def scores_of(model, rows=DEMONSTRATIONS):
    ids = [TOKENIZER(row["prompt"] + row["completion"] + "<eos>")["input_ids"] for row in rows]
    return reward_model_scores(model, ids, batch_size=2)


def test_demonstrations_score_zero_on_average_with_stock_loading(tmp_path):
    model = reward_model()
    trainer = make(tmp_path, model=model, calibration_dataset=Dataset.from_list(DEMONSTRATIONS), max_steps=2)
    trainer.train()
    trainer.save_model()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    scores = scores_of(loaded)
    assert scores.mean().item() == pytest.approx(0, abs=1e-6) and scores.std() > 1e-3
    ids, mask = pad_rows(
        [TOKENIZER("abc<eos>")["input_ids"]], pad_token_id=0, side="right", device=torch.device("cpu")
    )
    assert loaded(ids, attention_mask=mask).logits.item() == pytest.approx(scores[0].item(), abs=1e-6)
    assert loaded.score_bias.item() != 0 and not hasattr(loaded.config, "score_bias")


def test_calibrating_again_changes_nothing_and_returns_the_shift():
    model, rows = reward_model().eval(), Dataset.from_list(DEMONSTRATIONS)
    mean = scores_of(model).mean().item()
    assert calibrate(model, TOKENIZER, rows, batch_size=2) == pytest.approx(-mean, abs=1e-6)
    assert model.score_bias.item() == pytest.approx(-mean, abs=1e-6)
    assert calibrate(model, TOKENIZER, rows, batch_size=1) == pytest.approx(0, abs=1e-6)


def test_another_family_keeps_the_shift_in_its_configuration(tmp_path):
    torch.manual_seed(0)
    sizes = {"vocab_size": len(TOKENIZER), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    model = GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=1, pad_token_id=0)).eval()
    before = scores_of(model)
    bias = calibrate(model, TOKENIZER, Dataset.from_list(DEMONSTRATIONS))
    model.save_pretrained(tmp_path)
    loaded = load_reward_model(str(tmp_path)).eval()
    assert loaded.config.score_bias == bias == pytest.approx(-before.mean().item(), abs=1e-6)
    assert scores_of(loaded).tolist() == pytest.approx((before + bias).tolist(), abs=1e-6)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([TOKENIZER("abc<eos>")["input_ids"]])
    assert stock(ids).logits.item() == pytest.approx(before[0].item(), abs=1e-6)  # as the card says


def test_an_adapter_keeps_the_shift_beside_it_and_a_merged_one_has_it_once(tmp_path):
    reward_model().save_pretrained(tmp_path / "base")
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["fc1"], modules_to_save=["score"])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    options = {"calibration_dataset": Dataset.from_list(DEMONSTRATIONS), "max_steps": 2}
    trainer = make(tmp_path / "adapter", model=model, peft_config=lora, **options)
    trainer.train()
    trainer.save_model()
    loaded = load_reward_model(str(tmp_path / "adapter"))
    assert getattr(loaded.config, "score_bias", 0) != 0
    for some in (loaded, independent_copy(loaded)):
        assert scores_of(some.eval()).mean().item() == pytest.approx(0, abs=1e-5)


def test_long_demonstrations_are_cut_as_in_training_and_many_thinned_out(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "hf_instructgpt.reward.calibration.reward_model_scores",
        lambda model, rows, batch_size: seen.extend(rows) or torch.zeros(len(rows)),
    )
    rows = Dataset.from_list([{"text": "abcd"[: 1 + i % 4]} for i in range(2050)])
    calibrate(reward_model(), TOKENIZER, rows, max_length=3)
    assert len(seen) == 1024
    assert {tuple(ids) for ids in seen} <= {
        tuple(TOKENIZER(text + "<eos>")["input_ids"][-3:]) for text in ("a", "ab", "abc", "abcd")
    }


def test_demonstrations_of_another_form_are_named_before_training(tmp_path):
    with pytest.raises(InputError, match=r"`calibration_dataset`.*'completion'"):
        make(tmp_path, calibration_dataset=Dataset.from_list([{"prompt": "a", "answer": "b"}]))


def test_a_tokenizer_without_padding_gets_one_before_the_first_batch(tmp_path):
    tokenizer = CharGPTTokenizer.from_document()
    tokenizer.pad_token = None
    model = reward_model()
    trainer = make(tmp_path, model=model, tokenizer=tokenizer, max_steps=1)
    trainer.train()
    assert trainer.data_collator.pad_token_id == model.config.pad_token_id == EOS


# ---- Runs ----------------------------------------------------------------------------------------------------------


def preferences(n=8):
    """Fewer of the letter x is better, equal numbers tie; the last row has nothing to prefer."""
    rows = [ranking("abc"[i % 3], ["d", "dx", "xx", "x"], [1, 2, 3, 2]) for i in range(n - 1)]
    return [*rows, ranking("a", ["d", "e"], [1, 1])]


def test_it_learns_saves_and_evaluates(tmp_path):
    rows = preferences()
    trainer = make(
        tmp_path,
        rows,
        eval_rows=rows,
        max_steps=40,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=10,
        eval_strategy="steps",
        eval_steps=20,
        save_strategy="steps",
        save_steps=40,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_loss"] > 0.5
    assert after["eval_loss"] < 0.3
    assert (before["eval_accuracy"], after["eval_accuracy"]) == (0.0, 1.0)
    assert after["eval_margin"] > 1
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-40"):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        for name, tensor in trainer.model.state_dict().items():
            assert tensor.equal(model.state_dict()[name])
    names = ("loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens")
    log = json.loads((tmp_path / "checkpoint-40" / "trainer_state.json").read_text())["log_history"][0]
    assert set(names) <= set(log)


def test_evaluation_accuracy_counts_pairs(tmp_path):
    trainer = make(tmp_path, model=reward_model())
    trainer.model.eval()
    rows = [{"response_ids": [[20], [10], [30]], "ranks": [1, 2, 3]}]  # right: 20 over 10; wrong: 30 is the highest
    loss_of(trainer, rows)
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["margin"] == pytest.approx((1 - 1 - 2) / 3)
    expected = {"min_reward": 1.0, "mean_reward": 2.0, "max_reward": 3.0}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_accumulated_micro_batches_average_to_the_whole(tmp_path):
    rows = preferences(5)[:4]
    results = []
    for size, accumulation in ((4, 1), (1, 4)):
        model = reward_model(dropout=0.0)
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        make(tmp_path, rows, model, optim="sgd", max_steps=1, **options).train()
        results.append(model.state_dict())
    start = reward_model().state_dict()
    assert any(not results[0][name].equal(tensor) for name, tensor in start.items())
    for name, tensor in results[0].items():
        torch.testing.assert_close(tensor, results[1][name], atol=1e-6, rtol=1e-5)
