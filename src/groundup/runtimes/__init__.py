"""What executes a model for generation and serving, one file each."""
