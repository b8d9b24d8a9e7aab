"""Analysis of several explanations: two models compared, or a whole set summarised."""
