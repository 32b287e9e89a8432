"""Apps after the shape of Flower's examples: wrapped in an alignment, they do what they did before."""
