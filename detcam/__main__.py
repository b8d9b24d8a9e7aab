"""`python -m detcam` is `detcam`."""

from detcam.cli.app import main

if __name__ == "__main__":
    main()
