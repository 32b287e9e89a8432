"""quickstart: a Flower / PyTorch app whose clients trained networks of their own."""
