"""What models are made of: layers, and their mathematics as functions over arrays."""
