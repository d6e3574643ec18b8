"""Generate the modules of the messages, with protoc as grpcio-tools has it: `pip install 'cassata[proto]'`, and the test installs it."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main(out: Path = ROOT) -> int:
    import grpc_tools
    from grpc_tools import protoc

    known = Path(grpc_tools.__file__).parent / "_proto"

    files = sorted(str(file.relative_to(ROOT)) for file in Path(__file__).parent.glob("*.proto"))
    return int(protoc.main(["protoc", f"-I{ROOT}", f"-I{known}", f"--python_out={out}", f"--pyi_out={out}", *files]))


if __name__ == "__main__":
    sys.exit(main())
