"""A producer: reads lists of works as lines of JSON, and hands each to `enqueue` of the module that it is told. See peer.Producer."""

from __future__ import annotations

import importlib
import json
import sys

from bench.base import Work


def main() -> None:
    enqueue = importlib.import_module(sys.argv[1]).enqueue
    print("ok", flush=True)
    for line in sys.stdin:
        enqueue([Work(number, due_at, url, body.encode()) for number, due_at, url, body in json.loads(line)])
        print("ok", flush=True)


if __name__ == "__main__":
    main()
