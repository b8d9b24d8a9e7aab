"""Pages take clips and small models from the rooms that test videos and adapters."""

import sys
from pathlib import Path

for room in ("video", "adapters"):
    sys.path.append(str(Path(__file__).parents[1] / room))
