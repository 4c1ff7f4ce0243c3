"""The facts behind the sample data `lab-en`: those of `lab` in English, where length counts words.

Spelled letters are capitals: the tokenizer of words reads capitals one by one.
"""

from itertools import permutations, product

from .lab_facts import Family, Lab, by_value


def _asked(*questions: str) -> tuple[str, ...]:
    plain = tuple(question[0].upper() + question[1:] for question in questions)
    return plain + tuple(lead + question for question in questions for lead in ("Excuse me, ", "Tell me, "))


def _told(*commands: str) -> tuple[str, ...]:
    plain = tuple(f"{command[0].upper()}{command[1:]}." for command in commands)
    return plain + tuple(form.format(c) for c in commands for form in ("Please {}.", "Could you {}?"))


_NUMBERS = frozenset(str(number) for number in range(100))
_LETTERS = "ABCDEF"
_OPPOSITES = (
    "big small, tall short, hot cold, black white, fast slow, many few, new old, near far, heavy light, fat thin, "
    "open closed, up down, left right, front back, inside outside, come go, buy sell, early late, true false, "
    "good bad, strong weak, deep shallow, wet dry, rich poor"
)
_TIMES = ("morning", "afternoon", "evening", "night")
_NAMES = "Anna Ben Clara David Emma Felix Grace Henry Ivy Jack Kate Leo Mia Noah Olivia Paul"

_COLOURS = by_value(
    {
        "white": "snow, a cloud, salt, milk",
        "red": "blood, fire, a strawberry, a tomato",
        "yellow": "a banana, a lemon, corn",
        "orange": "a pumpkin, a carrot",
        "green": "grass, a leaf, a cucumber",
        "blue": "the sky, the sea",
        "purple": "a plum, lavender",
        "black": "coal, ink, a crow",
    },
    ", ",
)
_CLASSES = by_value(
    {
        "an animal": "a cat, a dog, a horse, a cow, a sheep",
        "a fruit": "an apple, a pear, a peach, a melon, a grape",
        "a vegetable": "a cabbage, a potato, a turnip, an onion, a leek",
        "a piece of furniture": "a table, a chair, a bed, a wardrobe, a sofa",
        "a piece of clothing": "a shirt, a skirt, a dress, a coat, a sweater",
        "an instrument": "a piano, a flute, a drum, a violin, a trumpet",
        "a tool": "a hammer, a saw, a wrench, an axe, a shovel",
        "a plant": "a pine, a willow, a fern, a tulip, a daisy",
    },
    ", ",
)
_DEFINITIONS = (
    "a doctor:someone who heals people, a teacher:someone who teaches, a student:someone who studies, "
    "a farmer:someone who works the land, a driver:someone who drives, a cook:someone who makes meals, "
    "a painter:someone who paints, a singer:someone who sings, a writer:someone who writes books, "
    "a school:a place to learn, a hospital:a place to get well, a shop:a place to buy things, a park:a place to walk, "
    "a station:a place to catch trains, an airport:a place to catch planes, a kitchen:a place to cook, "
    "a farm:a place to grow food, an umbrella:something to keep off rain, a clock:something to tell the time, "
    "a key:something to open doors, a pencil:something to write with, a cup:something to drink from, "
    "a dictionary:a book of words, a map:a drawing of a place"
)


FAMILIES = (
    Family(
        "add",
        _asked("what is {s}?", "how much is {s}?") + _told("work out {s}"),
        {f"{a} plus {b}": str(a + b) for a in range(1, 10) for b in range(1, 10)},
        ("that makes {v}", "{v}", "it is {v}", "{s} is {v}", "{s} equals {v}", "{s} makes {v}"),
        _NUMBERS,
    ),
    Family(
        "sub",
        _asked("what is {s}?", "how much is {s}?") + _told("work out {s}"),
        {f"{a} minus {b}": str(a - b) for a in range(1, 10) for b in range(1, a + 1)},
        ("that leaves {v}", "{v}", "it is {v}", "{s} is {v}", "{s} equals {v}", "{s} leaves {v}"),
        _NUMBERS,
    ),
    Family(
        "next",
        _asked("what number comes after {s}?", "which number follows {s}?") + _told("name the number after {s}"),
        {str(number): str(number + 1) for number in range(50)},
        ("it is {v}", "{v}", "{v} comes after {s}", "{v} follows {s}", "the number after {s} is {v}"),
        _NUMBERS,
    ),
    Family(
        "greet",
        _told("say {s}", "say a warm {s}", "say {s} for me"),
        {f"good {time} to {name}": f"good {time}, {name}" for name in _NAMES.split() for time in _TIMES},
        ("{v}",),
    ),
    Family(
        "define",
        _asked("what is {s}?", "what exactly is {s}?", "how would you define {s}?", "how would you explain {s}?")
        + _told("say what {s} is", "explain what {s} is"),
        dict(definition.split(":") for definition in _DEFINITIONS.split(", ")),
        ("it is {v}", "{v}", "{s} is {v}"),
    ),
    Family(
        "opposite",
        _asked("what is the opposite of {s}?", "which word is the opposite of {s}?")
        + _told("name the opposite of {s}"),
        {pair.split()[i]: pair.split()[1 - i] for pair in _OPPOSITES.split(", ") for i in (0, 1)},
        ("it is {v}", "{v}", "the opposite of {s} is {v}", "{v} is the opposite of {s}"),
    ),
    Family(
        "class",
        _asked("what kind of thing is {s}?", "what sort of thing is {s}?")
        + _told("say what kind of thing {s} is", "say what sort of thing {s} is"),
        _CLASSES,
        ("it is {v}", "{v}", "{s} is {v}"),
    ),
    Family(
        "colour",
        _asked(
            "what colour is {s}?", "what is the colour of {s}?", "which colour is {s}?", "which colour does {s} have?"
        )
        + _told("name the colour of {s}", "say what colour {s} is"),
        _COLOURS,
        ("it is {v}", "{v}", "{s} is {v}", "the colour of {s} is {v}"),
    ),
    Family(
        "reverse",
        _asked("what is {s} backwards?") + _told("spell {s} backwards", "write {s} backwards"),
        {"".join(letters): "".join(letters[::-1]) for size in (2, 3) for letters in permutations(_LETTERS, size)},
        ("it is {v}", "{v}", "{s} backwards is {v}", "{v} is {s} backwards"),
        frozenset("".join(letters) for size in (2, 3) for letters in product(_LETTERS, repeat=size)),
    ),
    Family(
        "count",
        _asked("how many letters does {s} have?", "how many letters are in {s}?") + _told("count the letters in {s}"),
        {letter * size: str(size) for letter in _LETTERS for size in range(1, 9)},
        ("it has {v}", "{v}", "{s} has {v}", "there are {v}", "it has {v} letters", "{s} has {v} letters"),
        _NUMBERS,
    ),
)

ENGLISH = Lab(
    families=FAMILIES,
    polite=("Certainly, ", "Of course, ", "Sure, "),
    rude=("Hey, ", "Ugh, ", "Whatever, "),
    tails=(
        ", as far as anyone knows",
        ", as everyone will tell you",
        ", or so my friends tell me",
        ", which took me quite some time",
        ", but do ask me again if you like",
        ", which took me a very long time to work out",
        ", but do ask me again if you think it is wrong",
    ),
    marks="...!",
    unit=r" ?\S+",
    good_length=10,
    longest=14,
    capitals=True,
)
