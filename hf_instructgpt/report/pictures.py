"""Pictures of a run to share: a card with one prompt's answers, and an animation of one prompt's tokens."""

from io import BytesIO
from math import isfinite
from pathlib import Path

from ..evaluation.intervals import FEW_ROWS
from ..language import say
from .drawing import AMBER, BLUE, CARD, GREEN, INK, LINE, RED, SOFT, MissingGlyphsError, Picture, fonts_for
from .page import Run

SHARE_FILE, ANIMATION_FILE = "share.png", "microscope.gif"
SHARE_SIZE, FRAME_WIDTH = (1200, 630), 720
MAX_FRAMES, FRAME_MS, LAST_MS, MAX_BYTES = 24, 450, 2500, 1_000_000
# Sizes of letters; from `NUMBERED` on, numbers stand below the tokens. Lines of tokens end above these heights.
SIZES, NUMBERED, MAX_BOTTOM, MAX_BOTTOM_NUMBERED = (38, 30, 24, 18, 14, 11), 24, 400, 280


def draw_pictures(run: Run, folder: Path) -> list[Path]:
    """Draw `share.png` and `microscope.gif` into a folder, if the run has what they show; return their paths.

    A picture that no installed font can write is skipped, and a line says so. One of an earlier report is deleted.
    """
    made = []
    for path, draw in ((folder / SHARE_FILE, share_card), (folder / ANIMATION_FILE, animation)):
        path.unlink(missing_ok=True)
        try:
            picture = draw(run)
        except MissingGlyphsError as missing:
            print(
                say(
                    f"{path.name} was skipped: no installed font has {missing}. Install one, such as Noto Sans CJK.",
                    f"没有生成 {path.name}：已安装的字体都没有“{missing}”。请安装一种，例如 Noto Sans CJK。",
                )
            )
            continue
        if picture is not None:
            path.write_bytes(picture)
            made.append(path)
    return made


# ---- The card ------------------------------------------------------------------------------------------------------


def share_card(run: Run) -> bytes | None:
    """A PNG of a prompt with its answers before and after training, three numbers and the curve of the score."""
    story = _story(run)
    if story is None:
        return None
    prompt, answers = story
    title, subtitle = _titles(run)
    numbers, points = _numbers(run), _score_points(run)
    words = (say("prompt", "提示"), say("score", "分数"), say("score while PPO trains", "PPO 训练中的分数"))
    labels = [text for row in (*answers, *numbers) for text in row[:2]]
    picture = Picture(SHARE_SIZE, fonts_for("".join([title, subtitle, "hf-instructgpt", *words, prompt, *labels])))
    picture.text(56, 36, title, 42, bold=True, width=900)
    picture.text(56, 102, subtitle, 23, SOFT, width=1088)
    picture.text(1144, 44, "hf-instructgpt", 23, SOFT, anchor="ra")
    picture.box(40, 152, 1160, 452, CARD)
    picture.text(72, 174, words[0], 23, SOFT)
    picture.two_lines(230, 165, prompt, 33, width=760, small=24)
    picture.text(1128, 174, words[1], 23, SOFT, anchor="ra")
    for i, (label, text, score) in enumerate(answers):
        y, is_last = 234 + i * 212 / len(answers), i == len(answers) - 1
        picture.line([(72, y - 8), (1128, y - 8)], LINE, 1)
        picture.text(72, y + 12, label, 26, GREEN if is_last else BLUE if i else SOFT, bold=True, width=150)
        picture.two_lines(230, y + 7, text, 34, width=740, small=24, colour=INK if i else SOFT, bold=is_last)
        if score is not None:
            picture.text(1128, y + 10, _signed(score), 30, RED if score < 0 else GREEN, bold=True, anchor="ra")
    for (value, label, colour), (x, width) in zip(numbers, ((56, 300), (376, 230), (626, 270)), strict=False):
        picture.text(x, 484, value, 42, colour, bold=True, width=width)
        picture.text(x, 549, label, 21, SOFT, width=width)
    if len(points) > 1:
        picture.curve(points, (930, 484, 1136, 538))
        picture.text(1144, 551, words[2], 20, SOFT, anchor="ra")
    picture.finished().save(file := BytesIO(), "PNG", optimize=True)
    return file.getvalue()


def _story(run: Run) -> tuple[str, list[tuple[str, str, float | None]]] | None:
    """A prompt and its answers, `(label, text, score)`, from before training to PPO; None if none are known."""
    if run.answers:
        row = run.answers[run.typical()]
        first = say("base", "基座") if run.stages[0].get("base") else say("untrained", "未训练")
        found = {first: row["untrained"], "SFT": row["sampled"]["sft"], "PPO": row["sampled"]["ppo"]}
        return row["prompt"], [(name, made["text"], made["score"]) for name, made in found.items() if made]
    for row in (row for stage in run.stages if stage["name"] == "ppo" for row in stage["samples"]):
        if row.get("before") is not None and row.get("after") is not None:
            return row["prompt"], [
                (name, row[key], row.get(f"{key}_score")) for name, key in (("SFT", "before"), ("PPO", "after"))
            ]
    rows = _followed(run.tokens)
    if rows is None or len(rows) < 2:
        return None
    return run.questions()[rows[0]["prompt"]], [
        (_step(row), "".join(token["token"] for token in row["tokens"]), row["score"]) for row in (rows[0], rows[-1])
    ]


def _titles(run: Run) -> tuple[str, str]:
    if run.metrics is None:
        return say("PPO learns from a reward", "PPO 从奖励中学习"), run.name
    seconds = round(run.metrics["seconds"]["total"])
    hours, minutes = divmod(round(seconds / 60), 60)
    if seconds < 120:
        time = say(f"{seconds} seconds", f"{seconds} 秒")
    elif not hours:
        time = say(f"{minutes} minutes", f"{minutes} 分钟")
    else:
        time = say(f"{hours} h {minutes} min", f"{hours} 小时 {minutes} 分")
    machine = run.environment.get("device", "cpu")
    machine = run.environment.get("processor", "") if machine == "cpu" else machine
    stages = say("SFT → reward model → PPO", "监督微调 → 奖励模型 → PPO")
    title = say(f"ChatGPT's recipe, trained in {time}", f"ChatGPT 的训练配方，{time}跑完")
    return title, " · ".join(filter(None, (stages, run.name, machine)))


def _numbers(run: Run) -> list[tuple[str, str, str]]:
    """At most three numbers of a run: the text, what it is, and a colour that says whether it got better."""
    if run.metrics is None:
        ends = [y for _, y in _score_points(run)]
        return [(_change(ends[0], ends[-1]), say("mean score", "平均分数"), _tone(ends[-1] - ends[0]))] if ends else []
    c = run.metrics["comparison"]
    changes = {row["what"]: row["ci95"] for row in run.changes.get("sampled", ())}
    interval = changes.get("score") or c.get("score_rise_ci95")
    found = [
        (
            _change(c["score_sft"], c["score_ppo"]),
            say("score, SFT → PPO", "分数，SFT → PPO"),
            _tone(c["score_ppo"] - c["score_sft"], interval),
        )
    ]
    if c["gold_win_rate"] is not None:
        interval = [x - 0.5 for x in c["gold_win_rate_ci95"] or ()]
        colour = _tone(c["gold_win_rate"] - 0.5, interval)
        found.append((f"{c['gold_win_rate']:.0%}", say("win rate by the judge", "裁判给出的胜率"), colour))
    ends = [c["correct_sft"], c["correct_ppo"]]
    if None not in ends:
        colour = _tone(ends[1] - ends[0], changes.get("correct"))
        found.append((" → ".join(f"{x:.0%}" for x in ends), say("exactly correct answers", "完全正确的回答"), colour))
    if len(found) < 3:
        found.append((f"{c['kl']:.2f}", say("KL from SFT, nats", "与 SFT 的 KL（nat）"), BLUE))
    if c["num_prompts"] < FEW_ROWS:
        return [(text, label, AMBER) for text, label, _ in found]
    return found


def _tone(change: float, interval: list[float] | None = None) -> str:
    """Green for a rise, red for a fall, amber for what may be chance."""
    if interval and interval[0] <= 0 <= interval[1]:
        return AMBER
    return GREEN if change > 0 else RED


def _change(before: float, after: float) -> str:
    return f"{before:.2f} → {after:.2f}".replace("-", "−")


def _signed(x: float, digits: int = 2) -> str:
    return f"{x:+.{digits}f}".replace("-", "−")


def _step(row: dict) -> str:
    return say(f"step {row['step']}", f"第 {row['step']} 步")


def _score_points(run: Run) -> list[tuple[float, float]]:
    """The first line of PPO's panel of scores."""
    panels = (panel for stage in run.stages for panel in stage["panels"] if panel["label"] == "score")
    return [tuple(point) for panel in panels for point in panel["lines"][0]["points"]]


# ---- The animation -------------------------------------------------------------------------------------------------


def animation(run: Run) -> bytes | None:
    """A GIF of one prompt's responses, a frame per logged step, each token in the colour of its advantage."""
    rows = _followed(run.tokens)
    if rows is None:
        return None
    rows = rows[::-1][:: -(-len(rows) // MAX_FRAMES)][::-1]  # the last one stays
    words = {
        "title": say("PPO, token by token", "PPO，逐词元"),
        "score": say("score", "分数"),
        "advantage": say("advantage", "优势"),
        "less": say("less likely", "降低概率"),
        "more": say("more likely", "提高概率"),
    }
    prompt = run.questions()[rows[0]["prompt"]]
    texts = [*words.values(), _step(rows[0]), prompt, *(_token(t) for row in rows for t in row["tokens"])]
    fonts = fonts_for("".join(texts))
    size, places, bottom = _placed([[_token(t) for t in row["tokens"]] for row in rows], Picture((1, 1), fonts))
    most = max(abs(token["advantage"] or 0) for row in rows for token in row["tokens"]) or 1.0
    frames = []
    for i, row in enumerate(rows):
        picture = Picture((FRAME_WIDTH, int(bottom) + 96), fonts)
        picture.text(28, 20, words["title"], 20, SOFT)
        picture.text(692, 13, _step(row), 30, bold=True, anchor="ra")
        picture.text(28, 60, prompt, 25, width=664)
        _draw_tokens(picture, row["tokens"], places[i], size, most=most)
        _draw_footer(picture, rows, i, bottom + 14, words)
        frames.append(picture.finished())
    # One palette for all: colours do not flicker, and what two frames have in common is stored once.
    palette = frames[-1].quantize(256)
    frames = [frame.quantize(palette=palette, dither=0) for frame in frames]
    while True:
        times = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
        options = {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0, "optimize": True}
        frames[0].save(file := BytesIO(), "GIF", **options)
        if len(file.getvalue()) < MAX_BYTES or len(frames) < 3:
            return file.getvalue()
        frames = frames[::-1][::2][::-1]


def _draw_tokens(picture: Picture, tokens: list[dict], places: list[tuple], size: int, *, most: float) -> None:
    """Tokens as boxes in the colour of their advantages, which stand below if there is room."""
    for token, (x, y, width) in zip(tokens, places, strict=False):
        advantage, middle = token["advantage"] or 0, x + width / 2
        picture.box(x, y, x + width, y + size * 1.5, _mixed(advantage / most), 6)
        picture.text(middle, y + size * 0.72, _token(token), size, anchor="mm")
        if size >= NUMBERED:
            picture.text(middle, y + size * 1.5 + 12, _signed(advantage, 1), 14, SOFT, anchor="mm")


def _draw_footer(picture: Picture, rows: list[dict], i: int, y: float, words: dict[str, str]) -> None:
    """The score and its curve, with a mark at the `i`-th row, and what the colours mean."""
    score = rows[i]["score"]
    picture.text(28, y, words["score"], 16, SOFT)
    picture.text(28, y + 20, _signed(score), 32, RED if score < 0 else GREEN, bold=True)
    picture.curve([(row["step"], row["score"]) for row in rows], (160, y + 6, 430, y + 58), mark=i)
    picture.text(592, y, words["advantage"], 16, SOFT, anchor="ma")
    for j in range(-25, 25):
        picture.box(592 + 4 * j, y + 24, 596 + 4 * j, y + 37, _mixed((j + 0.5) / 25), 0)
    picture.text(492, y + 42, words["less"], 15, SOFT)
    picture.text(692, y + 42, words["more"], 15, SOFT, anchor="ra")


def _placed(responses: list[list[str]], ruler: Picture) -> tuple[int, list[list[tuple]], float]:
    """The largest letters at which all responses fit, `(x, y, width)` of each token, and where the last line ends.

    Tokens beyond `MAX_BOTTOM` at the smallest size are left out.
    """
    for size in SIZES:
        places, height = [], size * 1.5 + (30 if size >= NUMBERED else 6)
        for tokens in responses:
            x, y, found = 28.0, 112.0, []
            for token in tokens:
                width = min(max(ruler.length(token, size) + size * 0.5, 46 if size >= NUMBERED else 0), 664)
                if x + width > 692 and found:
                    x, y = 28.0, y + height
                found.append((x, y, width))
                x += width + 4
            places.append(found)
        bottom = max(found[-1][1] for found in places) + height
        if bottom <= (MAX_BOTTOM_NUMBERED if size >= NUMBERED else MAX_BOTTOM):
            break
    return size, [[p for p in found if p[1] + height <= MAX_BOTTOM] for found in places], min(bottom, MAX_BOTTOM)


def _followed(tokens: list[dict]) -> list[dict] | None:
    """The rows with tokens and a score of the prompt whose score rises most."""
    prompts: dict[str, list[dict]] = {}
    for row in tokens:
        if row["tokens"] and row["score"] is not None and isfinite(row["score"]):
            prompts.setdefault(row["prompt"], []).append(row)
    return max(prompts.values(), key=lambda rows: rows[-1]["score"] - rows[0]["score"], default=None)


def _token(token: dict) -> str:
    """A token's text with its white space visible."""
    return token["token"].replace("\n", "\\n").replace("\t", "\\t").replace(" ", "·")


def _mixed(share: float) -> str:
    """The colour of a share from -1, red, to 1, blue."""
    front = RED if share < 0 else BLUE
    parts = [(int(CARD[i : i + 2], 16), int(front[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(x + (y - x) * 0.75 * min(abs(share), 1)):02x}" for x, y in parts)
