"""Pushing a folder to the Hub, in one commit, and what to do when that fails."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from ..errors import InputError

# Names of files and folders that are never pushed: `training_args.bin` is a pickle with paths of the machine in it;
# names with a dot or an underscore in front are of work that was not finished; then come what trackers write, and
# names of keys and passwords.
IGNORED = ("_*", ".*", "checkpoint-*", "training_args.bin", "stage.json", "card.json")
IGNORED += ("wandb", "mlruns", "runs", "completions", "events.out.tfevents.*")
IGNORED += ("id_*", "*.pem", "*.key", "*.env", "token", "token.*", "netrc", "*secret*", "*credential*", "*password*")
# What an earlier push may have left under names that this one does not use, and `from_pretrained` would still find.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "*adapter_config.json", "value_model/*", "ema/*")
# What Trainer pushed from its folder while it trained.
REPLACED += ("training_args.bin", "stage.json", "card.json")
# By status of the Hub's answer.
ADVICE = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
    403: "the token may not write there: take one with write access (https://huggingface.co/settings/tokens), or "
    "another namespace",
    404: "there is no such repository or namespace, or the token may not see it",
    409: "somebody else changed the repository at the same moment: push again",
    412: "somebody else changed the repository at the same moment: push again",
    429: "too many requests: wait a while and push again",
}


# A line that is not there or breaks.
NETWORK_ERRORS = (HTTPError, ConnectionError, TimeoutError)


@contextmanager
def hub_errors(what: str, *, network: tuple[type[Exception], ...] = NETWORK_ERRORS) -> Iterator[None]:
    """What the Hub refuses, or the way to it does, is an `InputError` that names `what` and the way out."""
    try:
        yield
    except InputError:
        raise
    except OfflineModeIsEnabled as error:
        raise InputError(f"{what}: HF_HUB_OFFLINE is set. Unset it and push again.") from error
    except LocalTokenNotFoundError as error:
        raise InputError(f"{what}: there is no token: {ADVICE[401]}.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = ADVICE.get(status, "see the Hub's message" if status < 500 else "the Hub has trouble: push again")
        said = f" ({' '.join(error.server_message.split())})" if error.server_message else ""
        raise InputError(f"{what}: the Hub answered {status}{said}: {advice}.") from error
    except ValueError as error:  # a name or a card's metadata that the Hub does not take
        raise InputError(f"{what}: {' '.join(str(error).split())}") from error
    except network as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what}: the Hub cannot be reached: {reason}. Check the network and push again.") from error


def create_repo(name: str, *, repo_type: str = "model", private: bool | None = None) -> str:
    """Make a repository unless it is there. Returns its id, with the user's namespace where `name` has none."""
    with hub_errors(f"{name} could not be made"):
        repo_id = HfApi().create_repo(name, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if private and not HfApi().repo_info(repo_id, repo_type=repo_type).private:
            raise InputError(f"{repo_id} is there already and is public: make it private in its settings first.")
        return repo_id


def pushed_files(folder: str | Path, names: Iterable[str]) -> list[str]:
    """What of a folder is pushed: of the files in `names`, and in folders so named, all but `IGNORED` and links."""
    folder, found = Path(folder), set()
    for name in map(PurePosixPath, names):
        if name.is_absolute() or not name.parts or ".." in name.parts:
            continue
        path = folder / name
        for file in path.rglob("*") if path.is_dir() else [path]:
            inside = file.relative_to(folder)
            is_link = any((folder / part).is_symlink() for part in (inside, *inside.parents))
            is_ignored = any(fnmatch(part.lower(), pattern) for part in inside.parts for pattern in IGNORED)
            if file.is_file() and not is_link and not is_ignored:
                found.add(inside.as_posix())
    return sorted(found)


def push_folder(
    folder: str | Path,
    repo_id: str,
    files: Iterable[str],
    *,
    replaced: Mapping[str, str] | None = None,
    repo_type: str = "model",
) -> str:
    """Print the list of files and upload them in one commit: a reader finds all of them or none.

    Args:
        folder (`str` or `Path`): Where the files lie.
        repo_id (`str`): Where to; the repository is there.
        files (`Iterable[str]`): See [`pushed_files`].
        replaced (`Mapping[str, str]`, *optional*): Texts that go in the place of the folder's files, by their paths.
        repo_type (`str`): "model" or "dataset".

    Returns:
        `str`: the commit's URL.

    Raises:
        InputError: The push failed; the message says what to do.
    """
    folder, what = Path(folder), f"{folder} is whole, but could not be pushed to {repo_id}"
    names = sorted({*files, *(replaced or {})})
    print(f"To {repo_id} go {len(names)} files:", *(f"  {name}" for name in names), sep="\n")
    # Nothing is computed here: a RuntimeError is hf_xet's, which uploads large files.
    with TemporaryDirectory() as aside, hub_errors(what, network=(*NETWORK_ERRORS, RuntimeError)):
        for name in names:
            place = Path(aside) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if name in (replaced or {}):
                place.write_text(replaced[name], encoding="utf-8")
            else:
                place.symlink_to((folder / name).absolute())
        commit = HfApi().upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=aside,
            commit_message="Push by hf-instructgpt",
            delete_patterns=list(REPLACED) if repo_type == "model" else ["*.jsonl"],
        )
    return commit.commit_url


def push_code(repo_id: str, code: Mapping[str, str]) -> str | None:
    """Replace a model repository's Python files by newer ones of the same names, in one commit; nothing else changes.

    Args:
        repo_id (`str`): The repository. Its folders are looked through too: a critic carries its own code.
        code (`Mapping[str, str]`): The newer files by their names.

    Returns:
        `str`: the commit's URL; None if all files are as new already.

    Raises:
        InputError: The repository has none of these files, or the push failed; the message says what to do.
    """
    network = (*NETWORK_ERRORS, RuntimeError, LocalEntryNotFoundError)
    with hub_errors(f"the code in {repo_id} could not be replaced", network=network):
        paths = [path for path in HfApi().list_repo_files(repo_id) if Path(path).name in code]
        if not paths:
            raise InputError(f"{repo_id} holds none of the files {', '.join(code)}: it needs no new code.")
        old = {path: Path(hf_hub_download(repo_id, path)).read_text(encoding="utf-8") for path in paths}
        changed = [path for path in paths if old[path] != code[Path(path).name]]
        if not changed:
            return None
        commit = HfApi().create_commit(
            repo_id,
            [CommitOperationAdd(path, code[Path(path).name].encode()) for path in changed],
            commit_message="New code by hf-instructgpt, for newer versions of transformers",
        )
    return commit.commit_url
