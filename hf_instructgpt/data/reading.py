"""Read a data set by its name: a file of any kind, a folder, or a Hub id."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pandas
import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder, load_from_disk
from datasets.exceptions import DatasetsError

from ..errors import InputError

# File extensions, before that of a compression, and how `datasets` reads such files. An empty cell is no text, but the
# words "NA" and "null" are.
_CSV = ("csv", {"keep_default_na": False, "na_values": [""]})
_JSON = ("json", {})
BUILDERS = {".json": _JSON, ".jsonl": _JSON, ".ndjson": _JSON, ".csv": _CSV, ".tsv": _CSV}
BUILDERS |= {".parquet": ("parquet", {}), ".arrow": ("arrow", {})}
SEPARATORS = ",;\t"  # of a CSV file; it is the semicolon where commas are decimal points
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
READING_ERRORS = (OSError, EOFError, ImportError, ValueError, RuntimeError, StopIteration, DatasetsError)
CHUNK = 10_000  # rows that are Python objects at a time


def read_rows(name: str, config: str | None = None, *, max_rows: int | None = None) -> DatasetDict:
    """All splits of a data set, unchanged, or the first `max_rows` of each; the split of a single file is `train`.

    JSON values keep their types: a date stays text, and a field that only some rows have is None in the others.
    """
    path = Path(name)
    if path.is_file() or _ending(path) in BUILDERS:
        return _read_file(path, max_rows)
    hint = " (Its files must have the same columns; name one of them to read it alone.)" if path.is_dir() else ""
    with _naming(name, hint):
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = load_from_disk(name)
            return loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
        if path.is_dir():
            name = str(path.resolve())
            builder = load_dataset_builder(name, name=config)
            if builder.name == "json":
                files = builder.config.data_files.items()
                return DatasetDict({str(split): _read_json(map(Path, some), max_rows) for split, some in files})
            for file in path.rglob("*"):
                if _ending(file) in (".csv", ".tsv"):
                    _read_file(file, max_rows=1)  # its errors name the file and the line
        return _load(name, max_rows, name=config)


def dataset_of(rows: Iterable[dict]) -> Dataset:
    """A data set that keeps each value of the rows as it is, made in chunks to save memory.

    Arrow gives all messages of a column the same fields, fills them with None, and has no columns of text and lists.
    So a column with mappings, or with values of more than one type, is stored as JSON.
    """
    rows, columns, count = iter(rows), {}, 0
    while chunk := list(islice(rows, CHUNK)):
        for name in dict.fromkeys([*columns, *chain.from_iterable(chunk)]):
            column = columns.setdefault(name, [pyarrow.nulls(count)])
            column.append(_array(name, [row.get(name) for row in chunk]))
        count += len(chunk)
    table = pyarrow.table({name: _joined(name, arrays) for name, arrays in columns.items()})
    return Dataset(table, fingerprint=uuid4().hex)  # else it would be a hash of a copy of all rows


def _array(name: str, values: list, *, as_json: bool = False) -> pyarrow.Array:
    try:
        if not as_json and not any(map(_holds_mapping, values)):
            return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):
        pass  # more than one type
    try:
        texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    except TypeError as error:
        raise InputError(f"column {name!r} cannot be kept: {error}; remove it.") from error
    return pyarrow.array(texts, pyarrow.json_())


def _joined(name: str, arrays: list[pyarrow.Array]) -> pyarrow.ChunkedArray:
    try:
        schemas = [pyarrow.schema([(name, array.type)]) for array in arrays]
        kind = pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    except pyarrow.ArrowException:
        kind = pyarrow.json_()
        arrays = [x if x.type == kind else _array(name, x.to_pylist(), as_json=True) for x in arrays]
    arrays = [pyarrow.nulls(len(x), kind) if x.type == pyarrow.null() else x for x in arrays]
    return pyarrow.chunked_array([x if x.type == kind else x.cast(kind) for x in arrays])


def _holds_mapping(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_mapping, value)))


@contextmanager
def _naming(name: Path | str, hint: str = "") -> Iterator[None]:
    """Turn an error of the block's reading into an `InputError` that names the file or data set."""
    try:
        yield
    except InputError:
        raise
    except READING_ERRORS as error:
        line = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        if "fields in line" in line:
            hint = " (A text that contains the separator needs quotes.)"
        raise InputError(f"{name} cannot be read: {line}{hint}") from error


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
    with _naming(path):
        if builder == "csv":
            options = {"sep": _separator(path), **options}
        return _load(builder, max_rows, data_files=str(path), **options)


def _separator(path: Path) -> str:
    """The separator of a CSV file; a `ValueError` if its first row has more fields than its header.

    The reader would take the first fields of all rows as their names. Later rows it refuses itself.
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
    return DatasetDict({split: dataset_of(rows.take(max_rows)) for split, rows in stream.items()})


def _read_json(paths: Iterable[Path], max_rows: int | None) -> Dataset:
    paths = list(paths)
    rows = dataset_of(islice(chain.from_iterable(map(_json_rows, paths)), max_rows))
    if len(rows) == 0:
        raise InputError(f"{paths[0]}: there are no rows.")
    return rows


def _json_rows(path: Path) -> Iterator[dict]:
    """Rows of a JSON array or of JSON Lines."""
    with _naming(path), fsspec.open(str(path), "rb", compression="infer") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if number == 1 and line.lstrip().startswith(b"["):
                for item, row in enumerate(_parsed(line + file.read(), path, number), start=1):
                    yield _row(row, f"{path}, item {item}")
            elif line.strip():
                yield _row(_parsed(line, path, number), f"{path}, line {number}")


def _parsed(text: bytes, path: Path, number: int) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=_object)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # an error for half of a surrogate pair
        return value
    except (ValueError, RecursionError) as error:
        hint = "; a file of rows is one JSON array, or one object per line" if number == 1 else ""
        raise InputError(f"{path}, line {number}: not valid JSON in UTF-8 ({error}){hint}.") from error


def _object(pairs: list[tuple]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r} is given twice")
    return made


def _row(value: Any, place: str) -> dict:
    if not isinstance(value, dict):
        raise InputError(f"{place}: a row must be a JSON object, not {type(value).__name__}.")
    return value
