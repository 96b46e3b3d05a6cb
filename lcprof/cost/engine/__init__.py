"""What serving engines really reserve: weights, working memory, KV pages, and what then fits."""
