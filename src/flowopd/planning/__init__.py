"""What a recipe will need, measured on shapes alone: no weights are loaded."""
