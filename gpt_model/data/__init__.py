"""From documents to batches: sources, token shards, the sampler."""
