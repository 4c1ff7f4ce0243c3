"""A run, or one stage of it, on the Hub: a repository for each model and one for the data, each naming the others."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import DatasetDict
from huggingface_hub import DatasetCard, DatasetCardData, HfApi
from transformers.utils import logging

from ..data import SAMPLE_DATASETS
from ..data.loading import SAMPLES_DIR
from ..errors import InputError
from ..files import read_json, resource, to_json
from ..hub.model_card import README_FILE, Made, Source, base_on_hub, is_edited
from ..hub.upload import create_repo, hub_errors, push_code, push_folder, pushed_files
from ..ppo.critic import CRITIC_BASE_FOLDER
from ..report.markdown import table_cell
from ..report.reward_summary import reward_report_markdown
from ..resuming.resumable import STATE_FILE
from .arguments import DATA_KINDS, StageArguments
from .load_data import data_form, load_rows
from .model_cards import MORE_DATA, stage_card
from .run_folder import METRICS_FILE, REPORT_CARD_FILE, RUN_FILE, STAGE_FILE

logger = logging.get_logger(__name__)

# What a run's folders are called, in the order in which one is made of the other.
STAGE_FOLDERS = ("ppo_init", "sft", "reward", "ppo")
WHAT = {
    "ppo_init": "what PPO started from",
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

    RUN is the folder's name. Every repository is made first, then each is filled by one commit, so that a push which
    fails can be repeated; the folder itself stays as it is, but for a note of where it was pushed to. Pushed are the
    files that the stages wrote, as their `stage.json` lists them, and the cards; never what a link points to.

    Args:
        folder (`str` or `Path`): Of a run or of a stage.
        namespace (`str`, *optional*): A user or an organisation; by default the user whose token it is.
        private (`bool`, *optional*): Whether the repositories are private.
        with_data (`bool`): Whether a run's own data goes too. Data that is on the Hub already is only named.
        data (`list[str | Path]`): Files and folders that may be read for it, beside single files inside `folder`: a
            run that comes from somebody else names its data by a path, and could name any file.

    Returns:
        `list[str]`: the repositories' URLs.

    Raises:
        InputError: There is nothing to push, or the Hub refuses; the message says what to do.
    """
    folder = Path(folder)
    is_run = (folder / RUN_FILE).is_file()
    if is_run and not (folder / METRICS_FILE).is_file():
        raise InputError(f"{folder} holds a run that is not finished: `hf-instructgpt run --resume` ends it.")
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
    """Push a stage's result with the card for its new name, an adapter with its base model's. Returns the URL.

    `datasets` replaces what the card names as data.
    """
    made, names = Made.load(folder), _files(folder)
    replaced = _adapter_configs(folder, made, names)
    code = _char_gpt_code()  # the folder's own may be an earlier version's
    replaced |= {name: code[Path(name).name] for name in names if Path(name).name in code}
    repo_id = create_repo(repo, private=private)
    report_card = read_json(folder / REPORT_CARD_FILE) if REPORT_CARD_FILE in names else None
    if report_card is not None:
        places = {key: report_card.get(key) for key in ("dataset_name", "calibrated_on", "judged_by")}
        report_card |= {"model": repo_id, **{key: Path(place).name for key, place in places.items() if place}}
        replaced |= {REPORT_CARD_FILE: to_json(report_card), "report_card.md": reward_report_markdown(report_card)}
    state = read_json(folder / STATE_FILE) if STATE_FILE in names else None
    if state is not None and state.get("best_model_checkpoint"):
        replaced[STATE_FILE] = to_json({**state, "best_model_checkpoint": Path(state["best_model_checkpoint"]).name})
    shown = replace(made, datasets={**made.datasets, **(datasets or {})})
    if README_FILE in names and is_edited(folder, made):
        logger.warning(f"{folder / README_FILE} was edited by hand and is pushed as it is.")
    else:
        replaced[README_FILE] = f"{stage_card(folder, shown, name=repo_id, links=links or {})}\n"
    push_folder(folder, repo_id, names, replaced=replaced)
    replace(made, hub_id=repo_id).save(folder)
    return _url(repo_id)


def _files(folder: Path) -> list[str]:
    """The files of a stage's result that are pushed: those that it lists, and its card."""
    stage = read_json(folder / STAGE_FILE)
    if stage is None or not isinstance(stage.get("files"), list):
        raise InputError(f"{folder} has no {STAGE_FILE} that lists its files: run the stage anew.")
    return pushed_files(folder, [*map(str, stage["files"]), README_FILE])


def push_char_gpt_code(repo_id: str) -> str | None:
    """Give a repository that holds a CharGPT this version's code, as [`push_code`] does."""
    return push_code(repo_id, _char_gpt_code())


def _char_gpt_code() -> dict[str, str]:
    """The files that travel with a CharGPT, by their names."""
    folder = resources.files("hf_instructgpt.char_gpt")
    names = (f"{kind}_char_gpt.py" for kind in ("configuration", "modeling", "tokenization"))
    return {name: (folder / name).read_text(encoding="utf-8") for name in names}


def _user() -> str:
    with hub_errors("who is pushing cannot be told; `--namespace` says where to, and for the token"):
        return HfApi().whoami()["name"]


def _url(repo_id: str, kind: str = "") -> str:
    return f"{HfApi().endpoint}/{kind}{repo_id}"


def _adapter_configs(folder: Path, made: Made, names: list[str]) -> dict[str, str]:
    """The configurations of all adapters among a folder's files, their base models by their names on the Hub."""
    known = {source.name: source for source in (made.base_model, *made.rewards) if source is not None}
    replaced = {}
    for name in names:
        path = folder / name
        if path.name != "adapter_config.json" or (path.parent / CRITIC_BASE_FOLDER).is_dir():
            continue  # a critic may have its base model with it
        config = json.loads(path.read_text(encoding="utf-8"))
        base = config["base_model_name_or_path"] or ""
        source = known.get(base) or Source.of(base, folder=folder)
        config["base_model_name_or_path"] = base_on_hub(source, folder=folder)
        replaced[name] = json.dumps(config, indent=2) + "\n"
    return replaced


# ---- A whole run ---------------------------------------------------------------------------------------------------


def _push_run(folder: Path, prefix: str, *, private: bool | None, data: list[str | Path] | None) -> list[str]:
    stages = {name: Made.load(folder / name) for name in STAGE_FOLDERS if (folder / name).is_dir()}
    for name, made in stages.items():
        if made is None:
            raise InputError(f"{folder / name} has no card.json: run the stage anew.")
    parts = _run_data(folder, stages, data) if data is not None else []
    for name, made in stages.items():
        _adapter_configs(folder / name, made, _files(folder / name))  # looks for what cannot be pushed
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
    """One configuration of a run's data set: its rows, the sample set they are of, and who used them for what."""

    config: str
    rows: DatasetDict
    sample: str | None
    used: list[tuple[str, str]]


def _run_data(folder: Path, stages: dict[str, Made], given: list[str | Path]) -> list[_Part]:
    """The data of a run that is not on the Hub, each once.

    Raises:
        InputError: It is no longer there, or is neither a file in the run's folder nor among the `given`.
    """
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
    path = source.place(folder)
    if not path.exists():
        raise InputError(
            f"`{option}`: the data of {folder}, {source.name}, is no longer at {path}. Put it there, or pass "
            "--no_data to push the models alone."
        )
    # A folder can name other files (its README.md, `state.json`, links), and so can a pattern or a chain of addresses.
    is_alone = path.is_file() and path.resolve().is_relative_to(allowed[0]) and not re.search(r"[*?[]|::", str(path))
    for file in [] if is_alone else [path, *path.rglob("*")]:
        if not any(file.resolve().is_relative_to(place) for place in allowed[1:]):
            raise InputError(
                f"`{option}`: the data of {folder} is {file}, outside the run's folder or not a single file in it. "
                f"To push it too, pass --data {path}; to push the models alone, pass --no_data."
            )
    return path


def _push_data(parts: list[_Part], repo_id: str, links: dict[str, str]) -> None:
    """All configurations in one commit, as JSON Lines."""
    with _data_folder(parts) as folder:
        data = DatasetCardData(
            language="zh" if all(part.sample for part in parts) else None,
            license="apache-2.0" if all(part.sample for part in parts) else None,
            tags=["hf-instructgpt", "rlhf"],
            task_categories=["text-generation"],
            configs=[
                {
                    "config_name": part.config,
                    "data_files": [{"split": split, "path": f"{part.config}/{split}.jsonl"} for split in part.rows],
                }
                for part in parts
            ],
        )
        samples = sorted({part.sample for part in parts if part.sample})
        card = DatasetCard.from_template(
            data,
            template_path=str(resource("model_cards", "data.md")),
            title=repo_id.rpartition("/")[-1],
            name=json.dumps(repo_id),
            parts=parts,
            cell=table_cell,
            links=links,
            what=WHAT,
            sample_cards={name: _sample_card(name) for name in samples},
        )
        files = pushed_files(folder, [f"{part.config}/{split}.jsonl" for part in parts for split in part.rows])
        push_folder(folder, repo_id, files, replaced={README_FILE: f"{card}\n"}, repo_type="dataset")


@contextmanager
def _data_folder(parts: list[_Part]) -> Iterator[str]:
    with TemporaryDirectory() as folder:
        for part in parts:
            (Path(folder) / part.config).mkdir()
            for split, rows in part.rows.items():
                with (Path(folder) / part.config / f"{split}.jsonl").open("w", encoding="utf-8") as file:
                    file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        yield folder


def _sample_card(name: str) -> str:
    """The card of a sample data set without its metadata, its headings a level lower."""
    text = DatasetCard.load(SAMPLES_DIR / name / "README.md").text.strip()
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.splitlines())
