"""Side-by-side evaluation: many checkpoints of one model, each measured once, and a report on all of them."""
