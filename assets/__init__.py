"""assets: what is produced. Stages, the wrapper that makes each a Dagster asset, and the store."""
