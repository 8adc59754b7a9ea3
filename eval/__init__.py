"""Studies of what the package does, and what they share."""
