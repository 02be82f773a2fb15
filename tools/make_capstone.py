"""Pack the capstone's pipeline and its faults: ``python tools/make_capstone.py``.

The readable sources are in tests/capstone_nodes. What the lab ships is not plain text, so that nobody who looks for a
function in lab_utils reads the answer by accident.
"""

import json
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "tests" / "capstone_nodes"
PACKED = ROOT / "lab_utils" / "data" / "capstone.bin"

sys.path.insert(0, str(SOURCES))

from configs import CONFIGS  # noqa: E402
from faults import FAULTS, NODES, healthy  # noqa: E402


def packed() -> bytes:
    """The content of the packed file."""
    content = {
        "configs": CONFIGS,
        "healthy": {node: healthy(node) for node in NODES},
        "faults": [{"node": fault.node, "law": fault.law, "source": fault.source} for fault in FAULTS],
    }
    return zlib.compress(json.dumps(content, ensure_ascii=False).encode("utf-8"), level=9)


if __name__ == "__main__":
    PACKED.write_bytes(packed())
    print(f"{PACKED.relative_to(ROOT)}: {len(FAULTS)} faults, {PACKED.stat().st_size:,} bytes")
