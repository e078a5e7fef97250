"""The papers' experiments, an asset each: `experiments/<name>`. What each leaves is an `experiment.json` (`assets/experiment_page.py`)."""
