"""Questions about an image: missed objects, prompts, wrongly labelled regions."""
