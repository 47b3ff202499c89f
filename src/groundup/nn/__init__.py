"""Building blocks of networks: layers, attention, losses, caches. Knows no model and no task."""
