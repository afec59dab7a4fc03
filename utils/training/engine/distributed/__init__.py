"""Several processes that train one model: who they are, what they exchange, and weights in shards. Open `world.py` first."""
