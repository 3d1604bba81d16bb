"""`python -m orpo_exp`."""

from orpo_exp.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
