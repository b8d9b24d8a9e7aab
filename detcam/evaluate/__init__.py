"""The judge: does a heatmap say the truth? Metrics, labels, a runner that compares methods, and its report."""
