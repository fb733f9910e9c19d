"""`python -m distill …` is `fewstep …`, for launchers."""

from distill.cli import main

if __name__ == "__main__":
    main()
