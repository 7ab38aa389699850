"""What figures are drawn with: marks, scales, and the kinds of figures."""
