"""What MagR would do to each layer of a model, found without quantizing it."""
