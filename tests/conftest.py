"""No test sees the calibrations of whoever runs it."""

from __future__ import annotations

import os

os.environ["LCPROF_CALIBRATIONS"] = os.path.join(os.path.dirname(__file__), "no calibrations")
