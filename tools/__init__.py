"""What maintainers run: other releases, mutants, the tests of the toolkits."""
