"""Foreign checkpoint formats, in and out, one file each."""
