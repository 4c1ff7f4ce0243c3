"""Set before anything is imported, for every test and the processes that tests start."""

import os

os.environ |= {
    "HF_HUB_OFFLINE": "1",  # a test that looks on the Hub would wait for a network, or get what nobody has seen
    "OMP_NUM_THREADS": "1",  # models this small gain nothing from more, and lose much on a busy machine
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
