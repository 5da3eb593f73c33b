"""`python -m amuse`, and so `torchrun -m amuse`."""

from amuse.cli.main import main

if __name__ == "__main__":
    main()
