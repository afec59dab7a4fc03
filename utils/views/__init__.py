"""Rendering: matplotlib figures, text tables and HTML. Takes plain data, never engine objects, and no widgets."""
