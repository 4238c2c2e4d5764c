"""A process that computes only while it is asked to."""

import json
import signal
import subprocess
import threading

PATIENCE = 300  # Seconds for one answer, compiling included.


class Worker:
    """Between requests the process is stopped, so that threads of it that
    wait by spinning take no time from another's."""

    def __init__(self, *command, **options):
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )

    def ask(self, *words):
        """The answer, or RuntimeError if the process died instead."""
        self.process.send_signal(signal.SIGCONT)
        timer = threading.Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            print(*words, file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            raise RuntimeError(f"died at {words[0]}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def end(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
