"""From raw video to features: find clips -> cut -> encode -> write shards. `amuse.data.prepared` reads the result."""
