"""python -m nfm."""

from nfm.cli import main

if __name__ == "__main__":
    main()
