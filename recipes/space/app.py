"""The ranking page as a Hugging Face Space: `hf-instructgpt rank` with options from the Space's settings.

Variables: MODEL and PROMPTS (Hub ids), OUTPUT (default: /data/rankings.jsonl; without persistent storage, rankings are
lost when the Space restarts), and MODE, OVERLAP, GUIDELINES and PUSH_TO as the options of the command.
Secrets: PASSWORD, and HF_TOKEN for private models and data, and for PUSH_TO.
"""

import os
import sys

from hf_instructgpt.cli import main

flags = {name: os.environ.get(name.upper()) for name in ("model", "prompts", "password")}
missing = [name.upper() for name, value in flags.items() if not value]
if missing:
    sys.exit(f"the Space's settings lack {', '.join(missing)}")
more = {name: os.environ.get(name.upper()) for name in ("mode", "overlap", "guidelines", "push_to")}
flags |= {name: value for name, value in more.items() if value}
flags |= {"output": os.environ.get("OUTPUT", "/data/rankings.jsonl"), "host": "0.0.0.0", "port": "7860"}
sys.exit(main(["rank", *(f"--{name}={value}" for name, value in flags.items())]))
