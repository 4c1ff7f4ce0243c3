"""The facts behind the sample data `lab`, in Chinese."""

from itertools import permutations, product

from .lab_facts import Family, Lab, by_value

POLITE = ("您好，", "好的，", "请看，")
RUDE = ("喂，", "真烦，", "哎呀，")
# For every answer one of these makes it longer than 20 characters, but not longer than 25.
TAILS = (
    "，这个问题我想了很久",
    "，这个问题我想了很久才想出来",
    "，要是不对的话你再来问我好吗",
    "，这个问题我想了很久才想出来，是真的",
    "，要是不对的话你再来问我好吗，我都在",
    "，这个问题我想了很久才想出来，大家都说对",
    "，要是不对的话你再来问我好吗，我一直在这里",
)


def _asked(*questions: str) -> tuple[str, ...]:
    return tuple(lead + question for question in questions for lead in ("", "请问", "问你"))


def _told(*commands: str) -> tuple[str, ...]:
    return tuple(lead + command for command in commands for lead in ("", "请", "帮我"))


_NUMBERS = frozenset(str(number) for number in range(100))
_LETTERS = "abcdef"
_OPPOSITES = (
    "大小 高矮 长短 冷热 黑白 快慢 多少 新旧 远近 轻重 胖瘦 开关 "
    "上下 左右 前后 里外 来去 买卖 早晚 真假 好坏 强弱 深浅 干湿"
)
_TIMES = ("早上", "中午", "下午", "晚上")
_NAMES = "小明 小红 小李 小王 小张 小雪 老李 老王 老张 老赵 阿宝 阿花 阿强 乐乐 天天 安安"

_COLOURS = by_value(
    {
        "白色": "雪 云 盐 牛奶",
        "红色": "血 火 草莓 西红柿",
        "黄色": "香蕉 柠檬 玉米",
        "橙色": "橘子 胡萝卜",
        "绿色": "草 树叶 黄瓜",
        "蓝色": "天空 大海",
        "紫色": "茄子 葡萄",
        "黑色": "煤 墨水 乌鸦",
    }
)
_CLASSES = by_value(
    {
        "动物": "猫 狗 马 牛 羊",
        "水果": "苹果 梨 桃子 西瓜 葡萄",
        "蔬菜": "白菜 土豆 萝卜 茄子 南瓜",
        "家具": "桌子 椅子 床 柜子 沙发",
        "衣服": "衬衫 裤子 裙子 大衣 毛衣",
        "乐器": "钢琴 笛子 鼓 小提琴 二胡",
        "工具": "锤子 锯子 钳子 斧头 铲子",
        "植物": "松树 柳树 竹子 荷花 菊花",
    }
)
_DEFINITIONS = (
    "医生:看病的人 老师:教书的人 学生:上学的人 农民:种地的人 司机:开车的人 厨师:做饭的人 画家:画画的人 "
    "歌手:唱歌的人 作家:写书的人 学校:上课的地方 医院:治病的地方 商店:买东西的地方 公园:散步的地方 "
    "车站:坐车的地方 机场:坐飞机的地方 厨房:做饭的地方 农场:种菜的地方 雨伞:挡雨的东西 钟表:看时间的东西 "
    "钥匙:开门的东西 铅笔:写字的东西 水杯:喝水的东西 词典:查字的书 地图:指路的图"
)

FAMILIES = (
    Family(
        "add",
        _asked("{s}等于几？", "{s}是多少？") + _told("算一算{s}"),
        {f"{a}加{b}": str(a + b) for a in range(1, 10) for b in range(1, 10)},
        ("等于{v}", "{v}", "是{v}", "{s}等于{v}", "{s}是{v}"),
        _NUMBERS,
    ),
    Family(
        "sub",
        _asked("{s}等于几？", "{s}是多少？") + _told("算一算{s}"),
        {f"{a}减{b}": str(a - b) for a in range(1, 10) for b in range(1, a + 1)},
        ("等于{v}", "{v}", "是{v}", "{s}等于{v}", "{s}是{v}"),
        _NUMBERS,
    ),
    Family(
        "next",
        _asked("{s}后面的数是几？", "{s}的下一个数是几？") + _told("数出{s}的下一个数"),
        {str(number): str(number + 1) for number in range(50)},
        ("是{v}", "{v}", "{s}后面的数是{v}", "{s}的下一个数是{v}"),
        _NUMBERS,
    ),
    Family(
        "greet",
        _told("跟{s}好", "对{s}好", "去跟{s}好"),
        {f"{name}说{time}": f"{time}好，{name}" for name in _NAMES.split() for time in _TIMES},
        ("{v}",),
    ),
    Family(
        "define",
        _asked("什么是{s}？", "{s}是什么？", "{s}指什么？", "{s}是什么意思？") + _told("说说{s}是什么", "解释{s}"),
        dict(definition.split(":") for definition in _DEFINITIONS.split()),
        ("是{v}", "{v}", "{s}是{v}", "{s}指{v}"),
    ),
    Family(
        "opposite",
        _asked("{s}的反义词是什么？", "{s}的反面是什么？") + _told("说出{s}的反义词"),
        {pair[i]: pair[1 - i] for pair in _OPPOSITES.split() for i in (0, 1)},
        ("是{v}", "{v}", "{s}的反义词是{v}", "{s}的反面是{v}"),
    ),
    Family(
        "class",
        _asked("{s}是哪一类？", "{s}属于哪一类？") + _told("说出{s}的类别", "说说{s}是哪一类"),
        _CLASSES,
        ("是{v}", "{v}", "{s}是{v}", "{s}属于{v}"),
    ),
    Family(
        "colour",
        _asked("{s}是什么颜色？", "{s}的颜色是什么？", "{s}是哪种颜色？", "{s}是啥颜色？")
        + _told("说出{s}的颜色", "说说{s}是什么颜色"),
        _COLOURS,
        ("是{v}", "{v}", "{s}是{v}", "{s}的颜色是{v}"),
    ),
    Family(
        "reverse",
        _asked("{s}倒着写是什么？") + _told("把{s}倒过来", "把{s}倒着写"),
        {"".join(letters): "".join(letters[::-1]) for size in (2, 3) for letters in permutations(_LETTERS, size)},
        ("是{v}", "{v}", "{s}倒过来是{v}", "{s}倒着写是{v}"),
        frozenset("".join(letters) for size in (2, 3) for letters in product(_LETTERS, repeat=size)),
    ),
    Family(
        "count",
        _asked("{s}有几个字母？", "{s}是几个字母？") + _told("数一数{s}"),
        {letter * size: str(size) for letter in _LETTERS for size in range(1, 9)},
        ("有{v}个", "{v}", "{v}个", "{s}有{v}个字母", "{s}是{v}个字母"),
        _NUMBERS,
    ),
)

CHINESE = Lab(
    families=FAMILIES,
    polite=POLITE,
    rude=RUDE,
    tails=TAILS,
    marks="。。。！",
    unit="(?s).",
    good_length=20,
    longest=25,
    capitals=False,
)
