"""`hf-instructgpt doctor`: what went wrong in a run of PPO, from its log."""

import json
from pathlib import Path

from ..errors import InputError
from ..language import say
from ..layout import RUN_FILE, STATE_FILE, checkpoints, read_state
from ..ppo.doctor import RULES, Doctor
from ..report.printed_summary import summary
from ..report.run_summary import read_metrics


def print_diagnosis(*, folder: str, as_json: bool) -> None:
    """Print what the rules of [`hf_instructgpt.ppo.doctor`] find in the folder of a run, or of its PPO."""
    found = diagnosis(Path(folder))
    print(json.dumps(found, ensure_ascii=False, indent=2) if as_json else "\n".join(lines(found)))


def diagnosis(folder: Path) -> dict:
    """The rules that held in a run's log, each at the first step at which it did, and a complete run's warnings.

    Raises:
        InputError: There is no log of PPO in the folder.
    """
    is_run = (folder / RUN_FILE).is_file()
    part = folder / "ppo" if is_run else folder
    # The log of a run that is at work, or that broke off, is in its newest checkpoint.
    places = [part, *checkpoints(part)]
    state = next((state for place in places if (state := read_state(place)) is not None), None)
    if state is None:
        raise InputError(f"{part} has no {STATE_FILE} and no checkpoint: there is no log of PPO yet.")
    logs = [entry for entry in state["log_history"] if "clip_fraction" in entry]
    if not logs:
        raise InputError(f"the log in {part} is not one of PPO: it has no `clip_fraction`.")
    doctor = Doctor(logs)
    metrics = read_metrics(folder) if is_run else None
    return {
        "folder": str(part),
        "logs": len(logs),
        "last_step": logs[-1]["step"],
        "findings": [
            {
                "rule": finding.rule.name,
                "step": finding.step,
                "message": finding.message,
                "numbers": finding.numbers,
                "threshold": finding.rule.threshold,
                "still": doctor.holds_still(finding),
                "guide": finding.guide,
            }
            for finding in doctor.found.values()
        ],
        "run": [] if metrics is None else [text for mark, text in summary(metrics) if mark == "!"],
        "not_checked": doctor.unread,
    }


def lines(found: dict) -> list[str]:
    """The lines that say what [`diagnosis`] found."""
    folder, count, last = found["folder"], found["logs"], found["last_step"]
    shown = [
        say(
            f"{folder}: {count} logs up to step {last}, {len(RULES)} rules",
            f"{folder}：{count} 次记录，到第 {last} 步；{len(RULES)} 条规则",
        )
    ]
    for finding in found["findings"]:
        step = finding["step"]
        still = (say("still so", "仍是如此"), say("no longer so", "不再如此"))[not finding["still"]]
        shown += [
            say(
                f"! from step {step} ({still} at step {last}), {finding['rule']}: {finding['message']}",
                f"! 从第 {step} 步起（第 {last} 步时{still}），{finding['rule']}：{finding['message']}",
            ),
            f"  {say('More: ', '详见：')}{finding['guide']}",
        ]
    shown += [f"! {text}" for text in found["run"]]
    if not found["findings"] and not found["run"]:
        shown.append(say("Nothing found: no rule held at any log.", "没有发现问题：没有任何一条规则被触发。"))
    if found["not_checked"]:
        names = ", ".join(found["not_checked"])
        words = (f"Not checked, because the log lacks the numbers: {names}", f"日志中缺少所需的数，未检查：{names}")
        shown.append(say(*words))
    return shown
