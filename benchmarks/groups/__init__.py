"""The groups that `make bench` runs, each a module with `rows() -> Iterator[Row]`."""
