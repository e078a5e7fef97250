"""assets: what is produced. One module a stage; the one wrapper that makes a stage a Dagster asset."""
