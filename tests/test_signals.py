"""Signals and our threads: while they rest, none of them takes one that is not theirs."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from jmcache.signals import refuse_signals, signals_as_before
from jmcache.testing import PrivateServer

PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    from jmcache import CacheSettings, RedisCacheFactory

    class Sink:
        def __getattr__(self, name):
            return lambda *args, **kwargs: None

    cache = RedisCacheFactory.create_cache(
        CacheSettings.from_url(sys.argv[1], near=True), metrics=[Sink()]
    )
    cache.get_or_set("k", lambda: 1)
    cache._shop.background.submit(lambda: None)

    def blocks_it(task):
        try:
            status = Path(f"/proc/self/task/{task}/status").read_text()
        except FileNotFoundError:
            return True  # it has ended
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        return bool(blocked >> signal.SIGTERM - 1 & 1)

    own = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, own)
    over = time.monotonic() + 10
    looks = 0  # in a row: by then all have begun, and none is at work
    while looks < 30 and time.monotonic() < over:
        tasks = os.listdir("/proc/self/task")
        looks = looks + 1 if len(tasks) == 6 and all(map(blocks_it, tasks)) else 0
        time.sleep(0.01)
    print(len(tasks), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print("finished what it was at", flush=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, own)
    time.sleep(10)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_signal_that_the_main_thread_blocks_waits_for_it(tcp_server: PrivateServer) -> None:
    """Else it ends the process half way: a child of Celery's, with a lock of all children held."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), tcp_server.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    threads, *rest = done.stdout.splitlines()
    assert rest == ["finished what it was at"], done.stderr
    # Beside the main one: health, near, metrics, background, and who keeps leases.
    assert int(threads) == 6
    assert done.returncode == -signal.SIGTERM


def masks_of_a_thread(refuses: bool) -> list[set[int]]:
    """What a thread blocks at its beginning, after that, during foreign code, and after that."""
    masks: list[set[int]] = []

    def note() -> None:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [signal.SIGUSR2])
        note()
        if refuses:
            refuse_signals()
        note()
        with signals_as_before():
            note()
        note()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return masks


def test_signals_are_blocked_but_during_what_is_not_ours() -> None:
    """A program that a password function starts would never hear of Ctrl-C."""
    before, refused, foreign, after = masks_of_a_thread(refuses=True)
    assert before == foreign == {signal.SIGUSR2}
    assert refused == after > {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1}


def test_a_thread_that_is_not_ours_keeps_what_it_blocks() -> None:
    """A caller's own mask is none of a library's business."""
    assert masks_of_a_thread(refuses=False) == [{signal.SIGUSR2}] * 4


def test_a_fault_is_told_and_a_profiler_sees_all_threads() -> None:
    """A blocked fault ends the process without a word of faulthandler's."""
    _, refused, *_ = masks_of_a_thread(refuses=True)
    assert not refused & {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGPROF}
