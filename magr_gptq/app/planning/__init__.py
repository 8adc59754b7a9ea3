"""Models of a given size: what each width would cost a layer, and a plan that names every layer's width."""
