"""What a model is trained for, one file each: examples to tensors, the loss, outputs to answers."""
