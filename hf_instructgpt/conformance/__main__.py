"""`python -m hf_instructgpt.conformance MODULE [--json]`: exit status 1 if a case fails, 2 if MODULE is no module."""

import argparse
import importlib
import json
import sys
from collections import Counter
from pathlib import Path

from ..language import visible
from ..stages.user_functions import run_file
from .cases import FUNCTIONS, check


def main(argv: list[str] | None = None) -> int:
    """Check the functions of a module and print a verdict for each case."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_instructgpt.conformance",
        description="Check PPO functions against numbers worked by hand.",
        epilog="functions that a module may have, all arguments by name:\n  " + "\n  ".join(FUNCTIONS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("module", help="dotted path, or FILE.py, of a module with any of the functions below")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    try:
        is_file = options.module.endswith(".py")
        module = run_file(Path(options.module).absolute()) if is_file else importlib.import_module(options.module)
    except (ImportError, OSError) as error:
        print(f"conformance: {options.module} cannot be imported: {visible(str(error))}", file=sys.stderr)
        return 2
    results = check(module)
    if options.json:
        print(json.dumps(results, ensure_ascii=False, indent=2))
    else:
        for result in results:
            print(f"{result['verdict']:<22}{result['name']}")
            if result["verdict"] not in ("pass", "not provided"):
                print(visible(f"    {result['checks']}\n    expected {result['expected']}, seen {result['seen']}"))
                print(visible(f"    from: {result['source']}" + (f"\n    {result['note']}" if result["note"] else "")))
        print(", ".join(f"{count} {verdict}" for verdict, count in Counter(r["verdict"] for r in results).items()))
    return int(any(result["verdict"] == "fail" for result in results))


if __name__ == "__main__":
    sys.exit(main())
