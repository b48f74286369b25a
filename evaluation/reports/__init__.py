"""Takes the measurements of an evaluation; gives tables, pictures and pages."""
