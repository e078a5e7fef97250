"""Names in the scorecard's tables that the terminal reads too: of columns, of the first tables, and
of a value that is missing. Imports nothing, so that printing a table waits for no plotting.
"""

from __future__ import annotations

ARTIFACT, PROTOCOL, COMMANDS = "artifact", "protocol", "trace and rebuild it"
SEEN, K = "8-grams seen", "K"
VERDICT_FILE = "verdict.json"
SETTINGS = {"zero": "zero-shot", "one": "one-shot", "few": "few-shot"}  # of `Score.shots` -> column
NOT_HERE = "not run here"
NO_INTERVAL = "no interval"  # of too few examples
# Columns that the page folds away below a first table, and what it calls others.
UNDER_A_TABLE = (SEEN, K, PROTOCOL)
PAGE_LABELS = {"beside": "baselines", "on": "measured on", "on examples": "measured on"}
