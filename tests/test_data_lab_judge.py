"""The gold judge: hand-worked scores for every family and component, and what a policy might try to fool it."""

import pytest

from hf_instructgpt.data import LABS, gold_reward, gold_rewards, judge
from hf_instructgpt.errors import InputError

SNOW = "雪是什么颜色？"
TAILS = LABS["lab"].tails
WHITE = "What colour is snow?"
RAMBLING = LABS["lab-en"].tails[3]

# prompt, response, (content, end mark, politeness, length), score worked by hand:
# .30 content + .25 end mark + .30 politeness + .15 length
CHINESE = [
    ("3加4等于几？", "好的，等于7。", (1, 1, 1, 1), 1.00),
    ("3加4等于几？", "等于8", (0, -1, 0, 1), -0.10),
    ("9减2是多少？", "喂，等于7。", (1, 1, -1, 1), 0.40),
    ("9减2是多少？", "真烦，等于5", (0, -1, -1, 1), -0.40),
    ("7的下一个数是几？", "是8", (1, -1, 0, 1), 0.20),
    ("7的下一个数是几？", "请看，是9", (0, -1, 1, 1), 0.20),
    ("跟小明说早上好", "您好，早上好，小明！", (1, 1, 1, 1), 1.00),
    ("跟小明说早上好", "早上好，小红！", (0, 1, 0, 1), 0.40),
    ("跟小明说早上好", "晚上好，小明", (0, -1, 0, 1), -0.10),
    ("什么是医生？", "看病的人。", (1, 1, 0, 1), 0.70),
    ("什么是医生？", "是教书的人。", (0, 1, 0, 1), 0.40),
    ("大的反义词是什么？", "大的反义词是小。", (1, 1, 0, 1), 0.70),
    ("大的反义词是什么？", "是大。", (0, 1, 0, 1), 0.40),
    ("猫是哪一类？", "哎呀，猫是动物", (1, -1, -1, 1), -0.10),
    ("猫是哪一类？", "是水果", (0, -1, 0, 1), -0.10),
    (SNOW, "好的，是白色", (1, -1, 1, 1), 0.50),
    (SNOW, "是黑色。", (0, 1, 0, 1), 0.40),
    ("把abc倒过来", "是cba", (1, -1, 0, 1), 0.20),
    ("把abc倒过来", "好的，是abc。", (0, 1, 1, 1), 0.70),
    ("aaaa有几个字母？", "有4个。", (1, 1, 0, 1), 0.70),
    ("aaaa有几个字母？", "5个", (0, -1, 0, 1), -0.10),
    # a rambling tail costs the length, not the content: 25 characters
    (SNOW, "好的，是白色，要是不对的话你再来问我好吗，我都在。", (1, 1, 1, -1), 0.70),
    # the answer to another question, and nothing at all
    (SNOW, "是动物。", (-1, 1, 0, 1), 0.10),
    (SNOW, "", (-1, -1, 0, -1), -0.70),
]
ENGLISH = [
    ("What is 3 plus 4?", "Sure, that makes 7.", (1, 1, 1, 1), 1.00),
    ("What is 3 plus 4?", "That makes 8", (0, -1, 0, 1), -0.10),
    ("How much is 9 minus 2?", "Hey, that leaves 7.", (1, 1, -1, 1), 0.40),
    ("How much is 9 minus 2?", "Ugh, that leaves 5", (0, -1, -1, 1), -0.40),
    ("Which number follows 7?", "It is 8", (1, -1, 0, 1), 0.20),
    ("Which number follows 7?", "Certainly, it is 9", (0, -1, 1, 1), 0.20),
    ("Say good morning to Anna.", "Of course, good morning, Anna!", (1, 1, 1, 1), 1.00),
    ("Say good morning to Anna.", "Good morning, Ben!", (0, 1, 0, 1), 0.40),
    ("What is a doctor?", "Someone who heals people.", (1, 1, 0, 1), 0.70),
    ("What is a doctor?", "It is someone who teaches.", (0, 1, 0, 1), 0.40),
    ("What is the opposite of big?", "The opposite of big is small.", (1, 1, 0, 1), 0.70),
    ("What is the opposite of big?", "It is big.", (0, 1, 0, 1), 0.40),
    ("What kind of thing is a cat?", "Whatever, a cat is an animal", (1, -1, -1, 1), -0.10),
    ("What kind of thing is a cat?", "It is a fruit", (0, -1, 0, 1), -0.10),
    (WHITE, "Sure, it is white", (1, -1, 1, 1), 0.50),
    (WHITE, "It is black.", (0, 1, 0, 1), 0.40),
    ("Spell ABC backwards.", "It is CBA", (1, -1, 0, 1), 0.20),
    ("Spell ABC backwards.", "Sure, it is ABC.", (0, 1, 1, 1), 0.70),
    ("How many letters does AAAA have?", "It has 4.", (1, 1, 0, 1), 0.70),
    ("How many letters does AAAA have?", "It has 5", (0, -1, 0, 1), -0.10),
    # a rambling tail costs the length, not the content: 9 words are within the limit, 11 are not
    (WHITE, f"It is white{RAMBLING}.", (1, 1, 0, 1), 0.70),
    (WHITE, f"Of course, it is white{RAMBLING}.", (1, 1, 1, -1), 0.70),
    (WHITE, "It is an animal.", (-1, 1, 0, 1), 0.10),
    (WHITE, "", (-1, -1, 0, -1), -0.70),
]
BY_HAND = CHINESE + ENGLISH


@pytest.mark.parametrize(("prompt", "response", "parts", "score"), BY_HAND)
def test_score_by_hand(prompt, response, parts, score):
    judgement = judge(prompt, response)
    assert (judgement.content, judgement.end_mark, judgement.politeness, judgement.length) == parts
    assert judgement.score == pytest.approx(score, abs=1e-12)
    assert judgement.correct == (parts[0] == 1)
    assert gold_reward(prompt, response) == judgement.score
    messages = [[{"role": "user", "content": prompt}]], [[{"role": "assistant", "content": response}]]
    assert gold_rewards(*messages, completion_ids=[[1]]) == gold_rewards([prompt], [response]) == [judgement.score]


@pytest.mark.parametrize(("name", "table"), [("lab", CHINESE), ("lab-en", ENGLISH)])
def test_hand_table_has_a_right_and_a_wrong_answer_of_every_family(name, table):
    seen = {(LABS[name].prompts[prompt].family.name, parts[0]) for prompt, _, parts, _ in table}
    assert seen >= {(family.name, content) for family in LABS[name].families for content in (0, 1)}


def test_every_answer_form_is_exact_under_every_form_of_manners():
    for prompt, (family, subject, value) in list(LABS["lab"].prompts.items())[::7]:
        for template in family.answers:
            answer = template.format(s=subject, v=value)
            for text in (answer, f"好的，{answer}。", f"喂，{answer}！", f"请看，{answer}{TAILS[0]}。"):
                assert judge(prompt, text).content == 1, (prompt, text)
    for prompt, (family, subject, value) in list(LABS["lab-en"].prompts.items())[::7]:
        for template in family.answers:
            answer = template.format(s=subject, v=value)
            plain = answer[0].upper() + answer[1:]
            for text in (plain, f"{plain}!", f"Sure, {answer}.", f"Ugh, {answer}!", f"Of course, {answer}{RAMBLING}."):
                assert judge(prompt, text).content == 1, (prompt, text)


@pytest.mark.parametrize(
    "response",
    [
        "好的，好的，",
        "好的，好的，是白色。",
        "您好，好的，是白色。",
        "好的，喂，是白色。",
        "是白色是白色",
        "是白色白色",
        "是白色，是白色",
        "是白色是蓝色",
        "是白色，是蓝色。",
        "白色黑色红色黄色蓝色绿色",
        "不是白色",
        "是白",
        "是",
        "是。",
        "。",
        "是白色。。",
        "是白色。是白色。",
        "是白色。好的，",
        "是白色" + TAILS[0] + TAILS[0],
        TAILS[0],
        " 是白色",
        "是\0白色",
    ],
)
def test_content_is_not_fooled(response):
    assert judge(SNOW, response).content == -1


@pytest.mark.parametrize("response", ["等于7等于7", "等于77777", "等于07", "等于7，8", "等于1到18", "等于７", "等于"])
def test_numbers_are_not_fooled(response):
    assert judge("3加4等于几？", response).content == -1


def test_two_digits_run_together_are_just_another_number():
    assert judge("3加4等于几？", "等于77").content == 0


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("是白色。", 1),
        ("是白色！", 1),
        ("是白色", -1),
        ("是白色。。", -1),
        ("是白色。！", -1),
        ("是白色?。", -1),
        ("是。白色。", -1),
        ("。是白色", -1),
        ("是白色？", -1),
        ("是白色.", -1),
        ("是白色，", -1),
        ("是白色。 ", -1),
    ],
)
def test_end_mark(response, expected):
    assert judge(SNOW, response).end_mark == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("您好，是白色", 1),
        ("好的，是白色", 1),
        ("请看，是白色", 1),
        ("是白色", 0),
        ("是白色，好的，", 0),
        ("好的是白色", 0),
        ("好的，好的，是白色", 0),
        ("好的，您好，请看，", 0),
        ("喂，是白色", -1),
        ("真烦，是白色", -1),
        ("哎呀，是白色", -1),
        ("好的，喂，是白色", -1),
        ("好的，是白色，真烦", -1),
    ],
)
def test_politeness(response, expected):
    assert judge(SNOW, response).politeness == expected


@pytest.mark.parametrize(("size", "expected"), [(0, -1), (1, 1), (20, 1), (21, -1), (1000, -1)])
def test_length(size, expected):
    assert judge(SNOW, "是" * size).length == expected


def test_a_greeting_that_starts_like_a_polite_prefix_keeps_its_own_words():
    assert judge("跟小明说早上好", "您好，早上好，小明。").correct
    assert not judge("跟小明说早上好", "您好，小明。").correct


@pytest.mark.parametrize("prompt", ["雪是甜的吗？", "指令：雪是什么颜色？ 回答：", "", "什么是 AI？"])
def test_unknown_prompt_is_named(prompt):
    with pytest.raises(InputError) as error:
        judge(prompt, "是白色")
    assert repr(prompt) in str(error.value)


# ---- What differs in English ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        "Sure, sure, it is white.",
        "Sure, Sure, it is white.",
        "Sure, Ugh, it is white.",
        "Sure it is white.",
        "It is white white",
        "It is white. It is white.",
        "It is white, it is black.",
        "White black red yellow green blue",
        "It is not white",
        "It is whit",
        "It is whites",
        "It is",
        ".",
        "It is white..",
        "IT IS WHITE",
        "It is White",
        " It is white",
        "It  is white",
        "It is\nwhite",
        "It is white" + RAMBLING * 2,
        RAMBLING,
        "It is \0white",
    ],
)
def test_english_content_is_not_fooled(response):
    assert judge(WHITE, response).content == -1


@pytest.mark.parametrize(("response", "content"), [("It is cBA", -1), ("It is cba", -1), ("Cba", -1), ("CBA", 1)])
def test_spelled_letters_are_capitals(response, content):
    assert judge("Spell ABC backwards.", response).content == content


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("It is white.", 1),
        ("It is white!", 1),
        ("It is white", -1),
        ("It is white?", -1),
        ("It is white..", -1),
        ("It is. White.", -1),
        ("It is white。", -1),
        ("It is white. ", -1),
    ],
)
def test_english_end_mark(response, expected):
    assert judge(WHITE, response).end_mark == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Certainly, it is white", 1),
        ("Of course, it is white", 1),
        ("Sure, it is white", 1),
        ("sure, it is white", 0),
        ("It is white, Sure, ", 0),
        ("Sure it is white", 0),
        ("Sure, Of course, it is white", 0),
        ("您好，it is white", 0),
        ("Hey, it is white", -1),
        ("Ugh, it is white", -1),
        ("Whatever, it is white", -1),
        ("Sure, Hey, it is white", -1),
        ("Sure, it is white, Ugh", -1),
        ("It is white, they thought", 0),  # "hey" and "ugh" inside words are not rude
    ],
)
def test_english_politeness(response, expected):
    assert judge(WHITE, response).politeness == expected


@pytest.mark.parametrize(("size", "expected"), [(0, -1), (1, 1), (10, 1), (11, -1), (1000, -1)])
def test_english_length_counts_words(size, expected):
    assert judge(WHITE, " ".join(["white"] * size)).length == expected
    assert judge(WHITE, " " * size).length == -1
