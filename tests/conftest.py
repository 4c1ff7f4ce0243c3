"""The environment, set before anything is imported; and what several files of tests need."""

import base64
import contextlib
import gc
import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from matplotlib.figure import Figure

os.environ |= {
    "HF_HUB_OFFLINE": "1",  # a test that looks on the Hub would wait for a network, or get what nobody has seen
    "OMP_NUM_THREADS": "1",  # models this small gain nothing from more, and lose much on a busy machine
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}

os.environ.pop("PYTEST_ADDOPTS", None)  # this run has read it, and one that a test starts must not

ROOT = Path(__file__).parents[1]
# A PNG file of one pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
SAVEFIG = Figure.savefig


def pytest_addoption(parser):
    parser.addoption("--fake-device", action="store_true", help="as on a GPU, without one: see tests/fake_device.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Hide all modules from the garbage collector, which Trainer runs at each start: it took a third of the time.

    Before each test, because tests import more.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _fake_device(request):
    if not request.config.getoption("--fake-device"):
        yield
        return
    from fake_device import fake_device

    with fake_device():
        yield


@pytest.fixture(scope="session", autouse=True)
def _charts_of_one_pixel():
    """Charts are set up but not drawn, because drawing takes half of a run's time. See `charts`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).write_bytes(PIXEL))
        yield


@contextlib.contextmanager
def drawn_charts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", SAVEFIG)
        yield


@pytest.fixture
def charts():
    """For tests that look at charts: these are drawn."""
    with drawn_charts():
        yield


@pytest.fixture(scope="session")
def document_run(request, tmp_path_factory):
    """The folder of a run of the recipe `document`, called `doc`. It is read, and never written to.

    Of the worker processes of pytest-xdist, one makes it for all.
    """
    from hf_instructgpt.cli import main

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "runs" / "doc"
    folder.parent.mkdir(exist_ok=True)
    config = str(ROOT / "recipes" / "document" / "pipeline.yaml")
    with FileLock(folder.with_suffix(".lock")), drawn_charts():
        if not folder.exists():
            assert main(["run", "--config", config, "--output_dir", str(folder), "--seed", "0"]) == 0
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A folder with a Llama of random weights and a tokenizer of bytes that puts `<s>` before a text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def browser():
    """A real browser without a window. The tests that need one are skipped where there is none.

    Its client keeps an event loop running in this thread: no longer than for a file of tests.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser's client is not installed: playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no browser is installed: `apt-get install chromium`, or Chrome")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Open a file or an address in a tab of its own; whatever the page complains of fails the test.

    A JSON request that is refused is no complaint: what the page then says is for the test to see.
    """
    complaints, contexts = [], []

    def complain(message):
        is_refusal = message.text.startswith("Failed to load resource") and "/api/" in message.location["url"]
        if message.type == "error" and not is_refusal:
            complaints.append(message.text)

    def open_(place, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", complain)
        tab.goto(place.as_uri() if isinstance(place, Path) else place)
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def launched(monkeypatch):
    """The apps that a command serves, in a list; it then returns at once, and they are closed in the end."""
    gradio = pytest.importorskip("gradio", reason="the extra `app` is not installed")
    apps, launch = [], gradio.Blocks.launch

    def start(app, **options):
        apps.append(app)
        return launch(app, **(options | {"prevent_thread_lock": True, "quiet": True}))

    monkeypatch.setattr(gradio.Blocks, "launch", start)
    yield apps
    for app in apps:
        app.close()
