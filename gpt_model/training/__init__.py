"""The one training loop, its engine, schedules and checkpoints."""
