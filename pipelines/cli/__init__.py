"""The command line, `gpt-lineage`."""
