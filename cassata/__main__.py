"""`python -m cassata` is the `cassata` command."""

from cassata.cli import main

if __name__ == "__main__":
    main()
