"""Kill every search with every optimizer at random moments, resume until done, and compare with an uninterrupted run.

    python benchmarks/kill_everywhere.py            # 200 kills; goes on where it was stopped
    python benchmarks/kill_everywhere.py --quick    # 12 kills, and no result file

A run is a forked child, so that nothing is imported anew; it is killed with SIGKILL at a random commit, call, reply or
feedback, and so may be its resumed run. Candidates, scores, verdicts, final values and report must then be those of the
uninterrupted run, the committed spend its spend, and no call of a committed rollout may have been sent again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from harness import save
from kill_cases import CASES, MOMENT, SEARCHES

from trace_opt import optimize
from trace_opt.store.store import Store

CONCURRENCY = 4
KILLS = 200
LIMIT_S = 120
SEED = 11


def child(case: str, folder: Path, resume: bool, die_at: int) -> None:
    """Run or resume a search in this process, and die at the n-th moment; 0 is never."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    file = os.open(folder / "sent", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    moments = [0]

    def moment(sent: str) -> None:
        moments[0] += 1
        if moments[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if sent:
            os.write(file, sent.encode() + b"\n")

    event.listen(Engine, "commit", lambda _: moment(""))
    make, search = CASES[case]
    MOMENT.set(moment)
    options = make()
    workflow, train, guide = (options.pop(name) for name in ("workflow", "train", "guide"))
    optimize(
        workflow, train, guide, **options, search=SEARCHES[search](), store=folder / "runs.db", seed=SEED,
        concurrency=CONCURRENCY, resume="last" if resume else None,
    )  # fmt: skip
    (folder / "moments").write_text(str(moments[0]))


def forked(case: str, folder: Path, resume: bool, die_at: int) -> int:
    """The search in a forked child; gives its status, negative for a signal."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            child(case, folder, resume, die_at)
            os._exit(0)
        except BaseException:  # a forked child must not return
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 99


def dump(folder: Path) -> dict[str, Any]:
    """What must be the same however often the search was killed, and what it cost."""
    store = Store(folder / "runs.db")
    record, rows = store.load("last"), store.rollouts("last")
    store.close()
    timed = ("seconds", "spend", "saved")
    result = {
        "candidates": [[c.id, list(c.parents), str(dict(c.values)), c.mean, c.n, c.accepted] for c in record.candidates],
        "trials": [[t.number, t.step, t.optimizer, t.base, t.candidate, str(dict(t.changed)), t.reason, t.before, t.after,
                    t.n, t.accepted, t.verdict] for t in record.trials],
        "scores": [[r.candidate, r.example, r.score, r.text] for r in rows], "best": str(dict(record.best)),
        "report": {k: v for k, v in (record.report or {}).items() if k not in timed},
        "spend": {role: [c.calls, c.tokens_in, c.tokens_out] for role, c in sorted(record.spend.items()) if role != "lost" and c.calls},
    }  # fmt: skip
    lost = record.spend.get("lost")
    return {**json.loads(json.dumps(result, default=str)), "lost": 0 if lost is None else lost.calls}


def sent(folder: Path) -> Counter[str]:
    """The calls sent so far."""
    file = folder / "sent"
    return Counter(file.read_text().splitlines() if file.exists() else [])


def killed(case: str, folder: Path, clean: dict[str, Any], moments: int, rng: random.Random) -> dict[str, Any]:
    """A search with one to three kills, resumed until it is done, and what is wrong with it."""
    folder.mkdir()
    kills, resume, wrong, at = 0, False, [], []
    for attempt in range(10):
        die_at = rng.randrange(1, moments + 1) if attempt == 0 or (attempt < 3 and rng.random() < 0.4) else 0
        status = forked(case, folder, resume, die_at)
        if status == 0:
            break
        if status != -signal.SIGKILL:
            return {"kills": kills, "at": at, "wrong": [f"ended with {status}: {(folder / 'log').read_text()[-600:]}"]}
        kills += 1
        at.append(die_at)
        # nothing is there to go on with where it died before the run had a row
        resume = (folder / "runs.db").exists() and bool(Store(folder / "runs.db").runs())
        if not resume:
            (folder / "sent").unlink(missing_ok=True)
    found = dump(folder)
    wrong = [part for part in clean if part not in ("lost", "sent") and found[part] != clean[part]]
    again = sum((sent(folder) - Counter(clean["sent"])).values())
    if again > found["lost"]:
        wrong.append(f"{again} calls were sent again, {found['lost']} are booked as lost")
    shown = {part: [found[part], clean[part]] for part in wrong if part in ("spend", "best")}
    return {
        "kills": kills,
        "at": at,
        "wrong": wrong,
        "lost": found["lost"],
        "again": again,
        "shown": str(shown)[:400] if shown else "",
    }


def main() -> int:
    """All cases in turn, until there were enough kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--case", help="this one alone")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "trace_opt-kills.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = (
        [json.loads(line) for line in given.state.read_text().splitlines()]
        if given.state.exists() and not given.quick
        else []
    )
    wanted = 12 if given.quick else KILLS
    names = (
        [given.case] if given.case else random.Random(3).sample(list(CASES), len(CASES)) if given.quick else list(CASES)
    )
    cleans: dict[str, tuple[dict[str, Any], int]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        done = {row["number"] for row in rows}
        for number in (n for n in range(100_000) if n not in done):
            if sum(row["kills"] for row in rows) >= wanted or (given.case and number >= 8):
                break
            case = names[number % len(names)]
            if case not in cleans:
                folder = Path(temporary) / f"clean {len(cleans)}"
                folder.mkdir()
                status = forked(case, folder, False, 0)
                if status:
                    rows.append(
                        {
                            "number": number,
                            "case": case,
                            "kills": 0,
                            "wrong": [f"clean: {(folder / 'log').read_text()[-800:]}"],
                        }
                    )
                    print(rows[-1], flush=True)
                    continue
                cleans[case] = {**dump(folder), "sent": dict(sent(folder))}, int((folder / "moments").read_text())
            clean, moments = cleans[case]
            row = {
                "number": number,
                "case": case,
                **killed(case, Path(temporary) / f"run {number}", clean, moments, random.Random(f"{SEED}/{number}")),
            }
            rows.append(row)
            if row["wrong"]:
                print(row, flush=True)
            if not given.quick:
                with given.state.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    figures = {
        "kills": sum(row["kills"] for row in rows), "searches killed": len(rows), "pairs of search and optimizer": len({row["case"] for row in rows}),
        "concurrency": CONCURRENCY, "searches that differ from the uninterrupted one": sum(bool(row["wrong"]) for row in rows),
        "calls sent again, all booked as lost": sum(row.get("again", 0) for row in rows),
        "problems": [row for row in rows if row["wrong"]],
    }  # fmt: skip
    if given.quick or given.case:
        print(json.dumps(figures, indent=1))
    else:
        save("kill_everywhere", figures, seeds=[SEED])
    return bool(figures["problems"])


if __name__ == "__main__":
    sys.exit(main())
