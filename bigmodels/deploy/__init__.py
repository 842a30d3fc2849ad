"""What calls a finished model: generation."""
