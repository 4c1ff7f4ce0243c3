"""The pictures of a report: what they show, that every character has a shape, and that they are small."""

import io
import random
import shutil

import pytest
from matplotlib.font_manager import fontManager
from PIL import Image

from hf_instructgpt.cli import main
from hf_instructgpt.language import choose_language
from hf_instructgpt.report import drawing, pictures
from hf_instructgpt.report.drawing import AMBER, BACK, GREEN, RED, MissingGlyphsError, fonts_for
from hf_instructgpt.report.page import Run
from hf_instructgpt.report.pictures import draw_pictures

COMPARISON = {"score_sft": -0.08, "score_ppo": 2.09, "gold_win_rate": 0.88, "gold_win_rate_ci95": [0.85, 0.92]}
COMPARISON |= {"num_prompts": 300, "correct_sft": 0.7, "correct_ppo": 0.66, "kl": 1.86}


@pytest.fixture(autouse=True)
def english():
    choose_language("en")
    yield
    choose_language(None)


@pytest.fixture(params=["en", "zh"])
def language(request):
    choose_language(request.param)
    return request.param


def answer(text, score, gold=0.0, correct=False):
    return {"text": text, "score": score, "gold": gold, "correct": correct}


def row(step, tokens, score, prompt="What is a writer?"):
    found = [{"token": token, "advantage": random.Random(f"{step}{i}").gauss(0, 1)} for i, token in enumerate(tokens)]
    return {"step": step, "prompt": prompt, "score": score, "tokens": found}


def run(**changes):
    lines = [{"label": "sampled responses", "points": [(8, -0.1), (16, 1.5), (24, 2.0)]}]
    values = {
        "name": "instructgpt",
        "stages": [{"name": "ppo", "samples": [], "panels": [{"label": "score", "xlabel": "step", "lines": lines}]}],
        "tokens": [row(8 * i, f"a writer {i}" * i, i / 3) for i in range(1, 5)],
        "metrics": {"comparison": COMPARISON, "seconds": {"total": 67.2}},
        "answers": [
            {
                "prompt": "What is a writer?",
                "untrained": answer("xq zz", -1.9),
                "sampled": {
                    "sft": answer("wrote books", -0.6),
                    "ppo": answer("Look, a writer writes books.", 2.3, 1.0, True),
                },
            }
        ],
    }
    return Run(**values | changes)


def drawn(folder, **changes):
    """The card and the animation, None where there is none."""
    folder.mkdir(exist_ok=True)
    made = draw_pictures(run(**changes), folder)
    paths = [folder / name for name in ("share.png", "microscope.gif")]
    assert made == [path for path in paths if path.is_file()]
    return [Image.open(io.BytesIO(path.read_bytes())) if path.is_file() else None for path in paths]


def written(monkeypatch):
    """All texts that are written into pictures from now on, with their colours."""
    texts, write = [], drawing.Picture.text

    def listen(self, x, y, text, size, colour=drawing.INK, **options):
        texts.append((text, colour))
        write(self, x, y, text, size, colour, **options)

    monkeypatch.setattr(drawing.Picture, "text", listen)
    return texts


def only_fonts(monkeypatch, *names):
    monkeypatch.setattr(fontManager, "ttflist", [e for e in fontManager.ttflist if e.name in names])


def test_the_card_and_the_animation(tmp_path, language, monkeypatch):
    texts = written(monkeypatch)
    card, animation = drawn(tmp_path)
    assert card.size == (1200, 630) and animation.n_frames == 4 and animation.info["loop"] == 0
    back = tuple(int(BACK[i : i + 2], 16) for i in (1, 3, 5))
    for area in ((0, 0, 900, 140), (40, 150, 1160, 450), (40, 470, 900, 600), (900, 470, 1160, 600)):
        colours = card.convert("RGB").crop(area).getcolors(maxcolors=2**20)
        drawn_on = sum(count for count, colour in colours if colour != back)
        assert len(colours) > 20 and drawn_on > 1500, area
    frames = []
    for i in range(4):
        animation.seek(i)
        frames.append(animation.convert("RGB").tobytes())
        assert animation.info["duration"] == (2500 if i == 3 else 450)
    assert len(set(frames)) == 4
    said = [text for text, _ in texts]
    for text in ("What is a writer?", "xq zz", "Look, a writer writes books.", "−1.90", "+2.30", "88%", "70% → 66%"):
        assert text in said
    assert {"en": "ChatGPT's recipe, trained in 67 seconds", "zh": "ChatGPT 的训练配方，67 秒跑完"}[language] in said
    assert {"en": "step 8", "zh": "第 8 步"}[language] in said


def test_the_same_run_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        drawn(tmp_path / name)
    for name in ("share.png", "microscope.gif"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
def test_a_long_log_stays_small(tmp_path, monkeypatch):
    word = random.Random(0)
    tokens = [["".join(word.choices("abcdefgh ", k=6)) for _ in range(128)] for _ in range(100)]
    rows = [row(i + 1, some, i / 10) for i, some in enumerate(tokens)]
    _, animation = drawn(tmp_path, tokens=rows)
    assert animation.n_frames <= pictures.MAX_FRAMES and (tmp_path / "microscope.gif").stat().st_size < 1e6
    monkeypatch.setattr(pictures, "MAX_BYTES", 150_000)
    texts = written(monkeypatch)
    _, fewer = drawn(tmp_path, tokens=rows)
    assert (tmp_path / "microscope.gif").stat().st_size < 150_000 and 2 <= fewer.n_frames < animation.n_frames
    assert ("step 100", drawing.INK) in texts  # the last is always there


def test_the_command_writes_them_beside_the_page_of_one_folder(document_run, tmp_path):
    folder = shutil.copytree(document_run, tmp_path / "doc")
    for place in (folder, folder / "ppo"):
        assert main(["report", str(place)]) == 0
        assert Image.open(place / "share.png").size == (1200, 630)
        assert Image.open(place / "microscope.gif").n_frames > 1
    assert main(["report", str(folder / "sft")]) == 0
    assert main(["report", str(folder), str(folder / "ppo"), "--output", str(tmp_path / "both" / "report.html")]) == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"report.html"}
    assert not (folder / "sft" / "share.png").exists() and not (folder / "sft" / "microscope.gif").exists()


# ---- Which prompt, which numbers -----------------------------------------------------------------------------------


def test_the_prompt_is_the_one_that_the_page_shows_first(tmp_path, monkeypatch):
    sft, texts = answer("a", 0.0, 0.5), written(monkeypatch)
    ppo = [answer("worse", 1.0, 0.2, True), answer("wrong", 1.0, 0.9), answer("right", 1.0, 0.7, True)]
    rows = [{"prompt": made["text"], "untrained": None, "sampled": {"sft": sft, "ppo": made}} for made in ppo]
    drawn(tmp_path, answers=rows)
    said = [text for text, _ in texts]
    assert "right" in said and "wrong" not in said and "worse" not in said


def test_without_answers_the_card_has_samples_or_the_first_and_the_last_logged_response(tmp_path, monkeypatch):
    samples = [{"prompt": "asked", "before": "was", "after": "is"}]
    texts = written(monkeypatch)
    sft = {"name": "sft", "samples": [{"prompt": "of SFT", "before": "a", "after": "b"}], "panels": []}
    drawn(tmp_path, answers=[], stages=[sft, {"name": "ppo", "samples": samples, "panels": []}])
    said = {text for text, _ in texts}
    assert {"asked", "was", "is"} <= said and "of SFT" not in said
    texts.clear()
    drawn(tmp_path, answers=[], metrics=None)
    said = [text for text, _ in texts]
    assert "a writer 1" in said and "a writer 4" * 4 in said and "−0.10 → 2.00" in said
    assert drawn(tmp_path, answers=[], tokens=[]) == [None, None]


def test_colours_say_what_got_better_and_what_may_be_chance(tmp_path, monkeypatch):
    texts = written(monkeypatch)
    drawn(tmp_path)
    assert {("−0.08 → 2.09", GREEN), ("88%", GREEN), ("70% → 66%", RED)} <= set(texts)
    texts.clear()
    changes = {"sampled": [{"what": "correct", "ci95": [-0.09, 0.01]}]}
    chance = COMPARISON | {"gold_win_rate_ci95": [0.4, 0.95]}
    drawn(tmp_path, changes=changes, metrics={"comparison": chance, "seconds": {"total": 4000}})
    assert {("88%", AMBER), ("70% → 66%", AMBER), ("ChatGPT's recipe, trained in 1 h 7 min", drawing.INK)} <= set(
        texts
    )


# ---- Fonts ---------------------------------------------------------------------------------------------------------


def shape(font, text):
    return font.getmask(text).size, bytes(font.getmask(text))


@pytest.mark.parametrize("text", ["请看，是写书的人。9！", "naïve Ġ → −1", "日本語のテキスト"])
def test_every_character_has_a_shape_of_its_own(text):
    try:
        fonts = fonts_for(text)
    except MissingGlyphsError:
        pytest.skip("no font of this machine has these characters")
    for bold in (False, True):
        font = fonts(32, bold)
        box = shape(font, "\U0010fffd")  # no character: what a font draws for those that it lacks
        shapes = [shape(font, c) for c in text if c != " "]
        assert box not in shapes and len(set(shapes)) == len({c for c in text if c != " "})


def test_what_no_font_can_write_is_skipped_and_named(tmp_path, monkeypatch, capsys):
    drawn(tmp_path)
    only_fonts(monkeypatch, "DejaVu Sans")
    assert all(drawn(tmp_path))
    tokens = [row(8, ["作", "家"], 1.0, prompt="什么")]
    capsys.readouterr()
    card, animation = drawn(tmp_path, tokens=tokens)
    assert card is not None and animation is None
    out = capsys.readouterr().out
    assert out == "microscope.gif was skipped: no installed font has 么什作家. Install one, such as Noto Sans CJK.\n"
    with pytest.raises(MissingGlyphsError, match="ش"):
        fonts_for("شكرا")  # its letters must be joined


def test_what_has_no_shape_is_not_written():
    assert drawing.cleaned("a\n b\u200b\u202ec\x00") == "a bc"


def test_on_few_prompts_no_number_is_good_or_bad_news(tmp_path, monkeypatch):
    texts = written(monkeypatch)
    drawn(tmp_path, metrics={"comparison": COMPARISON | {"num_prompts": 5}, "seconds": {"total": 67.2}})
    assert {colour for text, colour in texts if text in ("−0.08 → 2.09", "88%", "70% → 66%")} == {AMBER}
