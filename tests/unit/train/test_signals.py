"""Signals end a process with its last word, whatever its main thread does; in small processes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support.training import environment

START = """
import ctypes, os, signal, sys, threading, time
from internvl_chat.train.signals import EndingSignals, InterruptedBySignal

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where these tests run under nohup

def force(number):
    print("forced", number, flush=True)
    os._exit(77)

def wait():
    print("ready", flush=True)
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        time.sleep(0.05)

with EndingSignals(force, grace_seconds={grace}) as signals:
"""
STUCK = """
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex)
    sys.setswitchinterval(60)  # "ready" is said once the main thread has left Python, not before
    about_to_wait = threading.Event()
    threading.Thread(
        target=lambda: about_to_wait.wait() and print("ready", flush=True), daemon=True
    ).start()
    about_to_wait.set()
    lock(mutex)  # in C, where no handler of Python's runs
"""
CATCHING = """
    try:
        wait()
    except InterruptedBySignal as err:
        print(err, signals.received, flush=True)
        sys.exit(128 + signals.received)
"""
DEAF = """
    try:
        wait()
    except InterruptedBySignal:
        wait()
"""
DEFERRING = """
    signals.defers = True
    print("ready", flush=True)
    while signals.received is None:
        time.sleep(0.01)
    print("saves", flush=True)
    try:
        wait()
    except InterruptedBySignal as err:
        print(err, flush=True)
"""
FORKING = """
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    ended = os.waitpid(child, 0)[1]
    print(os.WTERMSIG(ended), signals.settle(0.2), flush=True)
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


def start(body: str, grace: float = 60) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START.format(grace=grace) + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def end(process: subprocess.Popen[str], *numbers: signal.Signals) -> tuple[int, str]:
    """Send signals, each after a line of the process; its exit code and what it said after."""
    assert process.stdout is not None
    said = ""
    for number in numbers:
        said += process.stdout.readline()
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    return process.returncode, said.removeprefix("ready\n") + out


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_the_first_signal_is_raised_in_the_main_thread(name: str) -> None:
    number = signal.Signals[name]
    assert end(start(CATCHING), number) == (128 + number, f"{name} {int(number)}\n")


def test_a_main_thread_that_hears_nothing_is_ended() -> None:
    assert end(start(STUCK, grace=0.1), signal.SIGTERM) == (77, "forced 15\n")


def test_a_second_signal_ends_at_once() -> None:
    assert end(start(DEAF), signal.SIGINT, signal.SIGINT) == (77, "ready\nforced 2\n")


def test_while_it_is_to_save_only_ctrl_c_ends_it() -> None:
    code, said = end(start(DEFERRING), signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    assert (code, said) == (0, "saves\nready\nSIGINT\n")


def test_a_forked_process_has_its_own_signals() -> None:
    assert end(start(FORKING)) == (0, "15 None\nTrue\n")


WORKER = """
import multiprocessing, os, signal, sys, time
from internvl_chat.train.signals import leave_signals_to_parent

def work(queue):
    leave_signals_to_parent(0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(os.getpid(), number)  # not by the parent
    while signal.SIGTERM in signal.sigpending():  # a second one would be one with it
        time.sleep(0.01)
    queue.put("alive")
    time.sleep(60)

context = multiprocessing.get_context("fork")
queue = context.SimpleQueue()
worker = context.Process(target=work, args=(queue,))
worker.start()
print(queue.get())
worker.terminate()
worker.join(30)
print(worker.exitcode)
"""


def test_a_data_worker_ends_when_its_parent_says_so_and_not_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert (done.stdout, done.stderr) == ("alive\n0\n", "")
