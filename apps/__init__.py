"""Faces: command line, figures, page. No science is computed here."""
