"""Chat models that look at pictures and say what they are worth."""
