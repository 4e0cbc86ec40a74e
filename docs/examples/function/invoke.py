"""The platform's part: `python -m function.invoke connected SECONDS` reads events, one a line, and prints their answers."""

import json
import sys
import time
from importlib import import_module


class Context:
    """What a platform tells a handler."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self._end - time.monotonic()) * 1000)


if __name__ == "__main__":
    handler = import_module(f"{__package__}.{sys.argv[1]}").handler
    for line in sys.stdin:
        print(json.dumps(handler(json.loads(line), Context(float(sys.argv[2])))), flush=True)
