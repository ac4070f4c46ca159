"""Two processes beside one: what a second one adds where there is a second core.

python -m benchmarks.bench.replicas CONTENDER PORT THREADS    one of these processes
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.bench.contenders import CALLED, OURS, PLAIN
from benchmarks.bench.payloads import result
from benchmarks.bench.rounds import Plan, spread
from benchmarks.bench.session import Session

_KEY = "replicas"
_SETTINGS = [(name, threads) for threads in (1, 16) for name in (OURS, PLAIN)]
_LONGER = 4  # than a round of a contest: a process has to get going


def part_s(plan: Plan) -> float:
    """Return about how long it takes."""
    return len(_SETTINGS) * (1 + (plan.rounds + 1) * 2 * _LONGER * plan.round_s)


def run_part(session: Session) -> None:
    """Let one process read, then two, again and again; report the ratio of their throughputs."""
    step_s = part_s(session.plan) / len(_SETTINGS)
    for contender, threads in _SETTINGS:
        name = f"two processes, {contender} x {threads}"
        ratios = []
        first, second = (_start(contender, session.port, threads) for _ in range(2))
        try:
            for number in range(-1, session.plan.rounds):
                alone = _reads_a_second([first], session.plan)
                ratio = _reads_a_second([first, second], session.plan) / alone
                if number >= 0:
                    ratios.append(ratio)
                session.progress.show(name, step_s, (number + 1) / session.plan.rounds)
        finally:
            for process in (first, second):
                process.kill()
                process.communicate()
        session.progress.add(name, step_s)
        row = {"unit": "x", "all": ratios, "spread": spread(ratios), "worst": min(ratios)}
        session.report["figures"][name] = row


def _start(contender: str, port: int, threads: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.bench.replicas", contender, str(port)]
    process = subprocess.Popen(
        [*command, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if _said(process) != "ready\n":
        raise RuntimeError("a process did not start; what it said is above")
    return process


def _reads_a_second(processes: list[subprocess.Popen[str]], plan: Plan) -> float:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{_LONGER * plan.round_s}\n")
        process.stdin.flush()
    return sum([float(_said(process)) for process in processes])


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def main(name: str, port: int, parallel: int) -> None:
    """Read for as many seconds as each line of stdin says; print the reads a second."""
    contender = CALLED[name](port)
    contender.set(_KEY, result(5))

    def read_until(end: float) -> int:
        for reads in itertools.count(1):  # one at least, however late it is
            contender.get(_KEY)
            if time.perf_counter() >= end:
                return reads
        raise AssertionError  # there is no end to counting

    with ThreadPoolExecutor(parallel) as threads:
        print("ready", flush=True)
        for line in sys.stdin:
            began = time.perf_counter()
            reads = sum(threads.map(read_until, [began + float(line)] * parallel))
            print(reads / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
