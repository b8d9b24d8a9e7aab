"""Analysis: what explanations say together, of two models or of a whole set."""
