"""Make the pictures of the documentation, and what the READMEs show of a run, from two runs: English and Chinese.

    python recipes/docs/pictures.py FOLDER

Runs that FOLDER does not hold are made there first. Needs Chromium and playwright.
"""

import hashlib
import io
import json
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path

from PIL import Image
from playwright.sync_api import Locator, sync_playwright

DOCS = Path(__file__).resolve().parent
IMAGES, ROOT = DOCS / "images", DOCS.parents[1]
# By language: the folder of `run --lang LANGUAGE`, and the README that shows what it prints.
RUNS = {"en": ("runs/char_gpt_en", "README.md"), "zh": ("runs/char_gpt", "README.zh.md")}
STAGES = ("sft", "reward", "ppo")
COUNTED = re.compile(r" +(?:epoch|rollout|第) +\d+/\d+ ")  # lines of which a README shows the last one
NUM_STEPS = 6  # of the microscope's rows
MAX_BYTES = 100_000


def main(folder: Path) -> None:
    IMAGES.mkdir(exist_ok=True)
    for language, (run, readme) in RUNS.items():
        printed = folder / f"{language}.txt"
        if not (folder / run / "metrics.json").is_file():
            printed.write_text(command(folder, "run", "--lang", language), encoding="utf-8")
        show_printed(ROOT / readme, printed.read_text(encoding="utf-8"))
        metrics = json.loads((folder / run / "metrics.json").read_text(encoding="utf-8"))
        (IMAGES / f"run.{language}.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        command(folder, "report", run, "--lang", language)
        take_pictures(folder / run / "report.html", language)
    made = {"sources": digest(*sources()), **{path.name: digest(path) for path in sorted(IMAGES.glob("*.png"))}}
    (IMAGES / "pictures.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def sources() -> list[Path]:
    """The files whose changes make the pictures old: the recipes, and the parts of the report."""
    return sorted([*ROOT.glob("recipes/char_gpt/pipeline*.yaml"), *ROOT.glob("hf_instructgpt/report/page/*")])


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def command(folder: Path, *words: str) -> str:
    """What `hf-instructgpt` prints into a pipe, started in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "hf_instructgpt", *words], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def show_printed(readme: Path, printed: str) -> None:
    """Put what a run printed into a README: of the epochs and rollouts of a stage, the last one."""
    text = readme.read_text(encoding="utf-8")
    kept = []
    for is_count, lines in groupby(printed.strip().splitlines(), lambda line: COUNTED.match(line) is not None):
        lines = list(lines)
        kept += ["      …", lines[-1]] if is_count and len(lines) > 2 else lines
    block = "\n".join(["<!-- printed -->", "```text", *kept, "```", "<!-- end of printed -->"])
    text = re.sub("<!-- printed -->.*<!-- end of printed -->", lambda _: block, text, flags=re.DOTALL)
    readme.write_text(text, encoding="utf-8")


def take_pictures(report: Path, language: str) -> None:
    """The parts of a report as PNG files."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": 900, "height": 1200}, device_scale_factor=1.5, color_scheme="light", locale=language
        )
        page.goto(report.resolve().as_uri())
        # Buttons and menus cannot be used on a picture.
        page.add_style_tag(content=".no-print { display: none !important }")
        save(page.locator("section.hero"), f"run.{language}.png")
        for stage, charts in zip(STAGES, page.locator("section.stage .charts:not(.small)").all(), strict=True):
            save(charts, f"{stage}.{language}.png")
        steps = page.locator("#steps .step")
        num_steps = steps.count()
        shown = {round(i * (num_steps - 1) / (NUM_STEPS - 1)) for i in range(NUM_STEPS)}
        for i in range(num_steps):
            if i not in shown:
                steps.nth(i).evaluate("row => row.hidden = true")
        save(page.locator("#steps"), f"microscope.{language}.png")
        browser.close()


def save(part: Locator, name: str) -> None:
    """A part of a page in as few colours as keep it small."""
    picture = Image.open(io.BytesIO(part.screenshot())).convert("RGB")
    picture.quantize(128, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)
    if (size := (IMAGES / name).stat().st_size) >= MAX_BYTES:
        raise SystemExit(f"{name} has {size} bytes, at most {MAX_BYTES} are allowed: show less of it.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
