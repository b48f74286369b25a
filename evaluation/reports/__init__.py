"""Reports: from the measurements of an evaluation to tables, pictures and HTML pages."""
