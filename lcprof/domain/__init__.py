"""The nouns: models, GPUs, deployments, workloads and KV strategies. No reading of files."""
