"""W and H go in, a weight of smaller magnitude comes out: the problem, its penalty, its solvers."""
