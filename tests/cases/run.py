"""Try every case: what people brought, typed or ran into, and what is right then. One small file per case.

    python tests/cases/run.py            # all, with a count
    python tests/cases/run.py data text/chatml

Each file says in its first line what happened, and holds `check(folder)`, which fails unless the product does what is
right. It gets an empty folder. A case of many seconds says `SLOW = True`, and pytest runs it with `-m slow`.
"""

import importlib.util
import os
import sys
import tempfile
import time
import traceback
import unittest
from pathlib import Path

HERE = Path(__file__).parent


def case_files(names: list[str]) -> list[Path]:
    """The files of all cases, or of those whose room or name is named."""
    files = sorted(HERE.glob("*/*.py"))
    if not names:
        return files
    return [path for path in files if {path.parent.name, f"{path.parent.name}/{path.stem}"} & set(names)]


def load_case(path: Path):
    """The module of a case."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    spec = importlib.util.spec_from_file_location(f"case_{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(names: list[str]) -> int:
    """Try the cases and print a line for each. Returns 1 if one is wrong."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    files, right, home = case_files(names), 0, Path.cwd()
    for path in files:
        start, title = time.perf_counter(), f"{path.parent.name}/{path.stem}"
        try:
            module = load_case(path)
            with tempfile.TemporaryDirectory() as folder:
                module.check(Path(folder))
            right += 1
            print(
                f"right  {title}: {module.__doc__.splitlines()[0]} ({time.perf_counter() - start:.1f} s)", flush=True
            )
        except unittest.SkipTest as error:
            files = [other for other in files if other != path]
            print(f"skipped {title}: {error}", flush=True)
        except Exception:
            traceback.print_exc()
            print(f"WRONG  {title}", flush=True)
        os.chdir(home)
    print(f"{right} of {len(files)} cases are right.")
    return int(right < len(files) or not files)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
