"""From sources to batches: collect, tokenize, shard, pack, feed."""
