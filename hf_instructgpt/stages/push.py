"""Push a run, or one stage of it, to the Hub: a repository per model and one for the data, each linking the others."""

import json
import re
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path

from datasets import Dataset, DatasetDict
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from transformers.utils import logging

from ..data import SAMPLE_DATASETS
from ..data.loading import SAMPLES_DIR
from ..errors import InputError
from ..files import read_json, to_json
from ..hub.model_card import README_FILE, Made, Source, base_on_hub, is_edited
from ..hub.upload import create_repo, hub_errors, push_code, push_files, pushed_files
from ..layout import METRICS_FILE, REWARD_REPORT_FILE, RUN_FILE, STAGE_FILE, STAGE_FOLDERS, STATE_FILE
from ..markdown import render
from ..ppo.critic import CRITIC_BASE_FOLDER
from ..report.reward_summary import reward_report_markdown
from ..resuming.run_folder import check_finished
from .arguments import DATA_KINDS, StageArguments
from .load_data import data_form, load_rows
from .model_cards import MORE_DATA, stage_card

logger = logging.get_logger(__name__)

WHAT = {
    "ppo_init": "the model that PPO started from",
    "sft": "after supervised fine-tuning",
    "reward": "the reward model",
    "ppo": "after PPO",
    "data": "the data",
}


def push(
    folder: str | Path,
    *,
    namespace: str | None = None,
    private: bool | None = None,
    with_data: bool = True,
    data: list[str | Path] = (),
) -> list[str]:
    """Push a run as `NAMESPACE/RUN-sft`, `-reward`, `-ppo` and the data set `-data`; a stage as `NAMESPACE/FOLDER`.

    All repositories are created first, then each is filled by one commit, so that a failed push can be repeated. Only
    the files listed in each `stage.json`, and the cards, are pushed, and never the target of a link. A run may come
    from somebody else and name any local file as its data: apart from single files inside `folder`, only what is in
    `data` is read. Returns the URLs.
    """
    folder = Path(folder)
    is_run = (folder / RUN_FILE).is_file()
    if is_run and not (folder / METRICS_FILE).is_file():
        raise InputError(f"{folder} holds a run that is not finished: finish it with `hf-instructgpt run --resume`.")
    check_finished(folder)
    if not is_run and Made.load(folder) is None:
        raise InputError(f"{folder} holds neither a run nor a stage's result: it has no {RUN_FILE} and no card.json.")
    name = folder.resolve().name
    prefix = f"{namespace or _user()}/{name}"
    if not is_run:
        return [push_stage(folder, prefix, private=private)]
    return _push_run(folder, prefix, private=private, data=data if with_data else None)


def push_stage(
    folder: Path,
    repo: str,
    *,
    private: bool | None = None,
    links: dict[str, str] | None = None,
    datasets: dict[str, Source] | None = None,
) -> str:
    """Push a stage's result with a card for its new name, which names `datasets`, and return the URL."""
    made = Made.load(folder)
    files: dict[str, Path | str] = {name: folder / name for name in _listed(folder)}
    files |= _adapter_configs(folder, made, list(files))
    code = _char_gpt_code()  # the folder's own may be of an earlier version
    files |= {name: code[Path(name).name] for name in files if Path(name).name in code}
    repo_id = create_repo(repo, private=private)
    # No path of this machine goes along.
    report = read_json(folder / REWARD_REPORT_FILE) if REWARD_REPORT_FILE in files else None
    if report is not None:
        places = {key: report.get(key) for key in ("dataset_name", "calibrated_on", "judged_by")}
        report |= {"model": repo_id, **{key: Path(place).name for key, place in places.items() if place}}
        files |= {REWARD_REPORT_FILE: to_json(report), "reward_report.md": reward_report_markdown(report)}
    state = read_json(folder / STATE_FILE) if STATE_FILE in files else None
    if state is not None and state.get("best_model_checkpoint"):
        files[STATE_FILE] = to_json({**state, "best_model_checkpoint": Path(state["best_model_checkpoint"]).name})
    shown = replace(made, datasets={**made.datasets, **(datasets or {})})
    if README_FILE in files and is_edited(folder, made):
        logger.warning(f"{folder / README_FILE} was edited by hand and is pushed as it is.")
    else:
        files[README_FILE] = str(stage_card(folder, shown, name=repo_id, links=links or {}))
    push_files(folder, files, repo_id)
    replace(made, hub_id=repo_id).save(folder)
    return _url(repo_id)


def _listed(folder: Path) -> list[str]:
    """The files of a stage's result that are pushed: those that it lists, and its card."""
    stage = read_json(folder / STAGE_FILE)
    if stage is None or not isinstance(stage.get("files"), list):
        raise InputError(f"{folder} has no {STAGE_FILE} that lists its files: run the stage again.")
    return pushed_files(folder, [*map(str, stage["files"]), README_FILE])


def push_char_gpt_code(repo_id: str) -> str | None:
    """Replace the code in a repository of a CharGPT by this version's; see [`push_code`]."""
    return push_code(repo_id, _char_gpt_code())


def _char_gpt_code() -> dict[str, str]:
    """The code that travels with a CharGPT, by file name."""
    folder = resources.files("hf_instructgpt.char_gpt")
    names = (f"{kind}_char_gpt.py" for kind in ("configuration", "modeling", "tokenization"))
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


def _user() -> str:
    with hub_errors("the user is unknown: pass `--namespace`, or fix the login"):
        return HfApi().whoami()["name"]


def _url(repo_id: str, kind: str = "") -> str:
    return f"{HfApi().endpoint}/{kind}{repo_id}"


def _adapter_configs(folder: Path, made: Made, names: list[str]) -> dict[str, str]:
    """The configurations of all adapters among a folder's files, with the Hub ids of their base models."""
    known = {source.name: source for source in (made.base_model, *made.rewards) if source is not None}
    replaced = {}
    for name in names:
        path = folder / name
        if path.name != "adapter_config.json" or (path.parent / CRITIC_BASE_FOLDER).is_dir():
            continue  # a critic may bring its base model
        config = read_json(path)
        base = config["base_model_name_or_path"] or ""
        source = known.get(base) or Source.of(base, folder=folder)
        config["base_model_name_or_path"] = base_on_hub(source, folder=folder)
        replaced[name] = to_json(config)
    return replaced


# ---- A whole run ---------------------------------------------------------------------------------------------------


def _push_run(folder: Path, prefix: str, *, private: bool | None, data: list[str | Path] | None) -> list[str]:
    stages = {name: Made.load(folder / name) for name in STAGE_FOLDERS if (folder / name).is_dir()}
    for name, made in stages.items():
        if made is None:
            raise InputError(f"{folder / name} has no card.json: run the stage again.")
    parts = _run_data(folder, stages, data) if data is not None else []
    for name, made in stages.items():
        _adapter_configs(folder / name, made, _listed(folder / name))  # fails early
    repos = {name: create_repo(f"{prefix}-{name}", private=private) for name in stages}
    urls = {name: _url(repo) for name, repo in repos.items()}
    data_repo = create_repo(f"{prefix}-data", repo_type="dataset", private=private) if parts else None
    if data_repo is not None:
        urls["data"] = _url(data_repo, "datasets/")
        _push_data(parts, data_repo, {WHAT[name]: url for name, url in urls.items() if name != "data"})
    for name, repo in repos.items():
        links = {WHAT[other]: url for other, url in urls.items() if other != name}
        moved = {
            what: replace(stages[name].datasets[what], name=data_repo, path=None, config=part.config)
            for part in parts
            for stage, what in part.used
            if stage == name
        }
        push_stage(folder / name, repo, private=private, links=links, datasets=moved)
    return list(urls.values())


@dataclass
class _Part:
    """One configuration of a run's data set: its rows, their sample data set, and the (stage, use) pairs."""

    config: str
    rows: DatasetDict
    sample: str | None
    used: list[tuple[str, str]]


def _run_data(folder: Path, stages: dict[str, Made], given: list[str | Path]) -> list[_Part]:
    """The data of a run that is not on the Hub, each once; only files that [`push`] may read."""
    parts: dict[tuple, _Part] = {}
    allowed = [folder.resolve(), *(Path(path).resolve() for path in given)]
    for name, made in stages.items():
        options = read_json(folder / name / STAGE_FILE)["options"]
        known = {f.name: options[f.name] for f in fields(StageArguments) if f.name in options}
        wanted = {"training": ("dataset_name", DATA_KINDS[made.stage])}
        wanted |= {what: (option, "sft") for option, what in MORE_DATA.items() if options.get(option) is not None}
        for what, (option, kind) in wanted.items():
            source = made.datasets[what]
            is_sample = source.name in SAMPLE_DATASETS and source.path is None
            if source.path is None and not is_sample:
                continue
            args = StageArguments(**known) if option == "dataset_name" else StageArguments()
            args.dataset_name = source.name if is_sample else str(_local_data(folder / name, source, option, allowed))
            key = (args.dataset_name, args.dataset_config, args.dataset_test_fraction, kind)
            if key not in parts:
                rows = load_rows(args, kind)
                own_name = data_form(next(iter(rows.values())), kind) if what == "training" else option.split("_")[0]
                taken = {part.config for part in parts.values()}
                config = own_name if own_name not in taken else f"{name}_{own_name}"
                parts[key] = _Part(config, rows, source.name if is_sample else None, [])
            parts[key].used.append((name, what))
    return list(parts.values())


def _local_data(folder: Path, source: Source, option: str, allowed: list[Path]) -> Path:
    """The path of a stage's data, if it may be read."""
    path = source.place(folder)
    if not path.exists():
        raise InputError(
            f"`{option}`: the data of {folder}, {source.name}, is no longer at {path}. Put it back, or pass --no_data "
            "to push the models only."
        )
    # A folder can name other files (its README.md, `state.json`, links), and so can a pattern or a chain of addresses.
    is_alone = path.is_file() and path.resolve().is_relative_to(allowed[0]) and not re.search(r"[*?[]|::", str(path))
    for file in [] if is_alone else [path, *path.rglob("*")]:
        if not any(file.resolve().is_relative_to(place) for place in allowed[1:]):
            raise InputError(
                f"`{option}`: the data of {folder} is {file}, outside the run's folder or not a single file in it. "
                f"To push it too, pass --data {path}; to push the models only, pass --no_data."
            )
    return path


def _push_data(parts: list[_Part], repo_id: str, links: dict[str, str]) -> None:
    """Push all configurations as JSON Lines, with a card, in one commit."""
    paths = {(part.config, split): f"{part.config}/{split}.jsonl" for part in parts for split in part.rows}
    configs = [
        {
            "config_name": part.config,
            "data_files": [{"split": split, "path": paths[part.config, split]} for split in part.rows],
        }
        for part in parts
    ]
    is_sample = all(part.sample for part in parts)
    data = DatasetCardData(
        language="zh" if is_sample else None,
        license="apache-2.0" if is_sample else None,
        tags=["hf-instructgpt", "rlhf"],
        task_categories=["text-generation"],
        configs=configs,
    )
    card = render(
        "data.md",
        card_data=data.to_yaml(),
        title=repo_id.rpartition("/")[-1],
        name=repo_id,
        parts=parts,
        links=links,
        what=WHAT,
        sample_cards=[_sample_card(name) for name in sorted({part.sample for part in parts if part.sample})],
    )
    files = {paths[part.config, split]: _json_lines(rows) for part in parts for split, rows in part.rows.items()}
    push_files("the data", {README_FILE: card, **files}, repo_id, repo_type="dataset")


def _json_lines(rows: Dataset) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _sample_card(name: str) -> str:
    """The card of a sample data set without its metadata, its headings one level lower."""
    text = DatasetCard.load(SAMPLES_DIR / name / "README.md").text.strip()
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())
