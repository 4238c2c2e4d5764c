"""Where things are."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROTOS = REPOSITORY / "proto"
# What install.sh installs: programs in bin/, libraries beside it.
TOOLS = REPOSITORY / "build/interop"
