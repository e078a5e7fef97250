"""Starting ranks on this machine, and leaving none behind."""
