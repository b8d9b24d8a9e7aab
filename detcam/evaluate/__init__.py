"""Evaluation of heatmaps: metrics, labels, a judge that compares methods on identical objects, and its report."""
