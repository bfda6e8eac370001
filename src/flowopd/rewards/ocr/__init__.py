"""Legible text: what an OCR engine reads, by edit distance from what a prompt asks for."""
