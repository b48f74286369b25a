"""Reports: writes the measurements of an evaluation as tables, pictures and HTML pages."""
