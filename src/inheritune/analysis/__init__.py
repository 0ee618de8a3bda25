"""What a model does inside: rank and mass of its attention, importance of its layers."""
