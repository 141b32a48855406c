"""On PYTHONPATH with PRETEND_CARDS=1: Python processes, and those that they start, have pretended cards."""

import os
import sys
from pathlib import Path

if os.environ.get("PRETEND_CARDS"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from pretend_cuda import cards

    CARDS = cards(int(os.environ["PRETEND_CARDS"]))
    CARDS.__enter__()
