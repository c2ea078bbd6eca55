"""Run seeds from the command line:  python -m tests.simulation.run --seeds 2000 [--first S] [--planted NAME]

A failure is printed with its seed and the commit, which are all that is needed to see it again.  Exit code 1 if any
seed failed - or, with `--planted`, if none did.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tests.simulation.planted import PLANTED
from tests.simulation.world import Verdict, run_seed

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """Return the commit that is checked out, with a mark if there are changes."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def describe(verdict: Verdict, *, story: int = 0) -> str:
    """Return what there is to say of a seed that failed."""
    lines = [f"seed {verdict.seed}, commit {commit()}: {verdict.violation}"]
    cause = None if verdict.violation is None else verdict.violation.__cause__
    if cause is not None:
        lines += traceback.format_exception(cause)
    lines += verdict.story[len(verdict.story) - story :] if story else []
    return "\n".join(lines)


def main() -> int:
    """Run, and report."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.simulation.run")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--planted", choices=sorted(PLANTED), help="take a guard away")
    parser.add_argument("--guarded", action="store_true", help="its bias, the guard in place")
    parser.add_argument("--unbiased", action="store_true", help="without the guard, all faults")
    parser.add_argument("--story", type=int, default=0, help="show the last lines of the trace")
    parser.add_argument("--hashes", action="store_true", help="print the trace hash of each seed")
    arguments = parser.parse_args()
    if arguments.planted is None and (arguments.guarded or arguments.unbiased):
        parser.error("--guarded and --unbiased are about a planted fault: --planted NAME")
    logging.disable(logging.CRITICAL)
    planted = PLANTED.get(arguments.planted)
    how: dict[str, Any] = {}
    if planted is not None and not arguments.guarded:
        how["rules"] = planted.rules
    if planted is not None and not arguments.unbiased:
        how["bias"] = planted.bias
    failed, first, events, simulated_s = 0, "-", 0, 0.0
    probes: Counter[str] = Counter()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        verdict = run_seed(seed, **how)
        events, simulated_s = events + verdict.events, simulated_s + verdict.simulated_s
        probes.update(verdict.probes)
        if arguments.hashes:
            print(f"{seed} {verdict.trace_hash}", flush=True)
        if verdict.violation is not None:
            failed += 1
            first = str(seed) if failed == 1 else first
            print(describe(verdict, story=arguments.story), flush=True)
    print(
        f"{failed} of {arguments.seeds} seeds failed, the first {first}; {events} events, "
        f"{simulated_s / 3600:.1f} simulated hours in {time.process_time():.0f} s of CPU",
        file=sys.stderr,
    )
    for name, count in sorted(probes.items()):
        print(f"{count:9} {name}", file=sys.stderr)
    return int(failed == 0 if "rules" in how else failed > 0)


if __name__ == "__main__":
    sys.exit(main())
