"""Tasks for tests of executors."""

import os
import signal

from lake.errors import BadInput
from transforms.executors import ONE_THREAD


def square(number: int) -> int:
    """Compute something."""
    return number * number


def refuse(value: object) -> None:
    """Fail with an error of the tree."""
    raise BadInput(f"{value!r} is refused", fix="give another value")


def die(_: object) -> None:
    """End the process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def thread_settings(_: object) -> dict[str, str | None]:
    """Tell the variables that bound native threads."""
    return {name: os.environ.get(name) for name in ONE_THREAD}


def my_pid(_: object) -> int:
    """Tell which process computes."""
    return os.getpid()
