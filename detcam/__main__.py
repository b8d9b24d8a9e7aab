"""`python -m detcam` is `detcam`."""

from detcam.cli import main

if __name__ == "__main__":
    main()
