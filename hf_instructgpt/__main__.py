"""`python -m hf_instructgpt` is the command `hf-instructgpt`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
