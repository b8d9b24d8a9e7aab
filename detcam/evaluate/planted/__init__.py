"""Planted evidence: drawn scenes whose cause is known, and the judge that uses them."""
