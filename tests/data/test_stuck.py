"""What takes long because the process was suspended is not stuck."""

import signal
import subprocess
import sys
import time

READ = """
import sys
from speechssl.data import stuck

stuck.LONGEST_SECONDS = 1.0
with stuck.ended_if_stuck(lambda: "talk.wav"):
    print("reads", flush=True)
    sys.stdin.readline()
print("has read", flush=True)
"""


def test_a_process_that_was_suspended_goes_on() -> None:
    process = subprocess.Popen([sys.executable, "-c", READ], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "reads\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    process.stdin.write("samples\n")
    process.stdin.flush()
    assert process.stdout.read() == "has read\n"
    assert process.wait() == 0


def test_a_process_that_is_stuck_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", READ], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stderr
    assert process.stdout.read() == "reads\n"
    assert process.stderr.read() == "error: talk.wav: nothing was read for 1 seconds; does its storage answer?\n"
    assert process.wait() == 1
