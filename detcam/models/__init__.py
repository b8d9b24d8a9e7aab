"""Models: loading weights and checkpoints, safely and in supported versions."""
