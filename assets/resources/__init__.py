"""What stages are built with: the store, the tracking of runs, the launcher and its guard."""
