"""pipelines: when and how it runs. Definitions, jobs, schedules, sensors and the command line."""
