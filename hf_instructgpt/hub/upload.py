"""Upload files to the Hub in one commit, and tell the user what to do when that fails."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)

from ..errors import InputError

# Names of files and folders that are never pushed: `training_args.bin` is a pickle with local paths; a leading dot or
# underscore marks unfinished work; then what trackers write, and names of keys and passwords.
IGNORED = ("_*", ".*", "checkpoint-*", "training_args.bin", "stage.json", "card.json")
IGNORED += ("wandb", "mlruns", "runs", "completions", "rollouts", "events.out.tfevents.*")
IGNORED += ("id_*", "*.pem", "*.key", "*.env", "token", "token.*", "netrc", "*secret*", "*credential*", "*password*")
# What an earlier push, or Trainer, may have left under names that this push does not use: `from_pretrained` would find
# old weights, readers old rows.
STALE = {
    "model": (
        *("*.safetensors", "*.safetensors.index.json", "*adapter_config.json", "value_model/*", "ema/*"),
        *("training_args.bin", "stage.json", "card.json"),
    ),
    "dataset": ("*.jsonl",),
}
# By the status of the Hub's answer.
ADVICE = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token with write access",
    403: "the token may not write there: use one with write access (https://huggingface.co/settings/tokens), or "
    "another namespace",
    404: "there is no such repository or namespace, or the token has no access to it",
    409: "somebody else changed the repository at the same moment: push again",
    412: "somebody else changed the repository at the same moment: push again",
    429: "too many requests: wait a while and push again",
}
NETWORK_ERRORS = (HTTPError, ConnectionError, TimeoutError)
# Where nothing is computed, a RuntimeError comes from hf_xet, which uploads large files.
UPLOAD_ERRORS = (*NETWORK_ERRORS, RuntimeError)


@contextmanager
def hub_errors(what: str, *, network: tuple[type[Exception], ...] = NETWORK_ERRORS) -> Iterator[None]:
    """Turn an error of the Hub or the network into an `InputError` that names `what` and says what to do."""
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
    """Create a repository unless it exists, and return its id with a namespace, by default the user's."""
    with hub_errors(f"{name} could not be created"):
        repo_id = HfApi().create_repo(name, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if private and not HfApi().repo_info(repo_id, repo_type=repo_type).private:
            raise InputError(f"{repo_id} already exists and is public: make it private in its settings first.")
        return repo_id


def pushed_files(folder: str | Path, names: Iterable[str]) -> list[str]:
    """The files in `names`, and in folders so named, that are pushed: all but `IGNORED` names and links."""
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


def push_files(what: str | Path, files: Mapping[str, Path | str], repo_id: str, *, repo_type: str = "model") -> str:
    """Print a list of files, upload them in one commit and return its URL; `what` names them in an error.

    `files` holds a local file, or a text, for each path in the repository, which exists.
    """
    print(f"To {repo_id} go {len(files)} files:", *(f"  {name}" for name in sorted(files)), sep="\n")
    operations = [
        CommitOperationAdd(name, content.encode() if isinstance(content, str) else content)
        for name, content in sorted(files.items())
    ]
    with hub_errors(f"{what} is complete, but could not be pushed to {repo_id}", network=UPLOAD_ERRORS):
        for name in HfApi().list_repo_files(repo_id, repo_type=repo_type):
            if name not in files and any(fnmatch(name, pattern) for pattern in STALE[repo_type]):
                operations.append(CommitOperationDelete(name))
        return (
            HfApi()
            .create_commit(repo_id, operations, repo_type=repo_type, commit_message="Push by hf-instructgpt")
            .commit_url
        )


def push_code(repo_id: str, code: Mapping[str, str]) -> str | None:
    """Replace a repository's Python files by newer ones of the same names, in any folder, in one commit.

    Returns the commit's URL; None if all files are up to date.
    """
    with hub_errors(f"the code in {repo_id} could not be replaced", network=(*UPLOAD_ERRORS, LocalEntryNotFoundError)):
        paths = [path for path in HfApi().list_repo_files(repo_id) if Path(path).name in code]
        if not paths:
            raise InputError(f"{repo_id} has none of the files {', '.join(code)}: it needs no new code.")
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
