"""Rows of a data set by its name: a file of any kind, a folder, or a Hub id."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pandas
import pyarrow
from datasets import Dataset, DatasetDict, Features, Json, load_dataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetsError
from datasets.packaged_modules.json.json import Json as JsonBuilder

from ..errors import InputError

# The file names' ends, before that of a compression, and how `datasets` reads such files. An empty cell is no text,
# but the words "NA" and "null" are.
_CSV = {"keep_default_na": False, "na_values": [""]}
BUILDERS = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), ("json", {})),
    **dict.fromkeys((".csv", ".tsv"), ("csv", _CSV)),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
SEPARATORS = ",;\t"  # of a table; where commas are decimal points, it is the semicolon
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


def read_rows(name: str, config: str | None = None, *, max_rows: int | None = None) -> DatasetDict:
    """All splits of a data set, as they are.

    JSON is read as JSON is, whatever the other rows hold: a date stays text, and a field that only some rows have is
    missing in the others.

    Args:
        name (`str`): A JSON (an array, or lines), CSV, TSV, Parquet or Arrow file, compressed or not; a folder of such
            files, or one that `save_to_disk` wrote; or a Hub id. The split of a single file is `train`.
        config (`str`, *optional*): Which configuration of the data set.
        max_rows (`int`, *optional*): Read the first so many rows of each split, as a stream.

    Raises:
        InputError: There is no such data, or it cannot be read. It names the file and, of JSON, the line.
    """
    path = Path(name)
    if path.is_file() or _ending(path) in BUILDERS:
        return _read_file(path, max_rows)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = load_from_disk(name)
            return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
        if path.is_dir() and max_rows is None:
            builder = load_dataset_builder(str(path.resolve()), name=config)
            if isinstance(builder, JsonBuilder):
                files = builder.config.data_files
                return DatasetDict({str(split): _read_json(map(Path, some)) for split, some in files.items()})
        for file in path.rglob("*"):
            if _ending(file) in (".csv", ".tsv"):
                _read_file(file, max_rows=1)
        return _load(str(path.resolve()) if path.is_dir() else name, max_rows, name=config)
    except (OSError, ValueError, RuntimeError, DatasetsError, NotImplementedError, StopIteration) as error:
        if isinstance(error, InputError):
            raise
        hint = " (Its files must have the same columns; name one of them to read it alone.)" if path.is_dir() else ""
        raise InputError(f"{name} cannot be loaded: {_line(error)}{hint}") from error


def dataset_of(rows: list[dict]) -> Dataset:
    """A data set of rows that keeps each value as it is.

    Arrow gives all messages of a column the same fields, fills them with None, and takes no column of text and lists.
    A column that holds mappings, or values of more than one type, is stored as JSON.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    features = {}
    for name, values in columns.items():
        is_plain = not any(map(_holds_mapping, values))
        try:
            features[name] = Dataset.from_dict({name: values}).features[name] if is_plain else Json()
        except (pyarrow.ArrowException, OverflowError):
            features[name] = Json()
        if isinstance(features[name], Json):
            # Encoded here: `Json` takes a text that happens to be JSON, such as "0.5", for what it encodes.
            columns[name] = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return Dataset.from_dict(columns, features=Features(features))


def _holds_mapping(value) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_mapping, value)))


def _ending(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix


def _read_file(path: Path, max_rows: int | None) -> DatasetDict:
    if not path.is_file():
        raise InputError(f"the file {path} does not exist.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty.")
    if _ending(path) not in BUILDERS:
        raise InputError(
            f"{path}: a data file ends in {', '.join(BUILDERS)}, or in one of these and {', '.join(COMPRESSIONS)}."
        )
    builder, options = BUILDERS[_ending(path)]
    if builder == "json":
        return DatasetDict(train=_read_json([path], max_rows))
    try:
        if builder == "csv":
            options = {"sep": _separator(path), **options}
        return _load(builder, max_rows, data_files=str(path), **options)
    except (OSError, ValueError, RuntimeError, DatasetsError, StopIteration) as error:
        hint = " (A text that holds the separator needs quotes.)" if "fields in line" in _line(error) else ""
        raise InputError(f"{path} cannot be read: {_line(error)}{hint}") from error


def _separator(path: Path) -> str:
    """A table's separator. Raises `ValueError` if its first row has more fields than its header.

    The reader takes the first fields of all rows for names of the rows then. In later rows it refuses them itself.
    """
    with fsspec.open(str(path), "rb", compression="infer") as file:
        header = file.readline().decode(errors="replace")
    sep = max(SEPARATORS, key=header.count)
    with fsspec.open(str(path), "rb", compression="infer") as file:
        pandas.read_csv(file, sep=sep, header=None, nrows=2, encoding_errors="replace")
    return sep


def _load(path: str, max_rows: int | None, **options) -> DatasetDict:
    if max_rows is None:
        return load_dataset(path, **options)
    stream = load_dataset(path, streaming=True, **options)
    return DatasetDict({split: dataset_of(list(rows.take(max_rows))) for split, rows in stream.items()})


def _line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__


def _read_json(paths, max_rows: int | None = None) -> Dataset:
    rows = []
    for path in paths:
        for row in _json_rows(path):
            if max_rows is not None and len(rows) >= max_rows:
                break
            rows.append(row)
    if not rows:
        raise InputError(f"{path}: there are no rows.")
    return dataset_of(rows)


def _json_rows(path: Path) -> Iterator[dict]:
    """Rows of a JSON array, or of JSON Lines."""
    number = 0
    try:
        with fsspec.open(str(path), "rb", compression="infer") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if number == 1 and line.lstrip().startswith(b"["):
                    line += file.read()
                    for i, row in enumerate(json.loads(line, object_pairs_hook=_object), start=1):
                        yield _row(row, f"{path}, item {i}", is_plain=b"\\u" not in line)
                elif line.strip():
                    yield _row(
                        json.loads(line, object_pairs_hook=_object),
                        f"{path}, line {number}",
                        is_plain=b"\\u" not in line,
                    )
    except (OSError, EOFError, ImportError) as error:
        raise InputError(f"{path} cannot be read: {_line(error)}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        hint = "; a file of rows is one JSON array, or one object per line" if number == 1 else ""
        raise InputError(f"{path}, line {number}: not valid JSON in UTF-8 ({error}){hint}.") from error


def _object(pairs: list[tuple]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        name = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"the key {name!r} is given twice")
    return made


def _row(row: object, place: str, *, is_plain: bool) -> dict:
    if not isinstance(row, dict):
        raise InputError(f"{place}: a row must be a JSON object, not {type(row).__name__}.")
    if is_plain:
        return row
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: half of a surrogate pair (\\ud800 to \\udfff) is no text in UTF-8.") from error
    return row
