"""Starts the real server program and stops it again."""

import signal
import subprocess
import tempfile


class ServerProcess:
    """A running attention_server; use it as a context manager.

    `address` is what it said it listens on. Leaving the context asks it to
    drain and fails if it does not exit with 0.
    """

    def __init__(self, binary, *flags, listen="127.0.0.1:0"):
        # A file, not a pipe: nobody reads along, and what a full pipe does not
        # take is dropped. __exit__ closes it.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [binary, f"--listen={listen}", *flags],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        line = self.process.stdout.readline()
        prefix = "listening on "
        if not line.startswith(prefix):
            self.process.kill()
            self.process.wait()
            raise RuntimeError(f"server said {line!r}; log:\n{self.log()}")
        self.address = line[len(prefix) :].strip()

    def log(self):
        self._log.seek(0)
        return self._log.read()

    def terminate(self):
        """Asks the server to drain; returns at once."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self):
        """The exit code, once the server has ended."""
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        try:
            if self.process.poll() is None:
                self.terminate()
            code = self.wait()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        if code != 0:
            raise RuntimeError(f"server ended with {code}; log:\n{self.log()}")
        self._log.close()
