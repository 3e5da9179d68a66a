"""Seeds that are others every day: continuous integration looks a little further each time, and says where."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime

SEEDS_A_DAY = 1000

DAY = os.environ.setdefault("HOLDFAST_DAY", datetime.now(UTC).date().isoformat())
"""Set for the processes of one test run, so that all of them have the same on the stroke of midnight."""

FIRST_OF_TODAY = date.fromisoformat(DAY).toordinal() * SEEDS_A_DAY
