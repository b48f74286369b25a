"""Takes what evaluation measured; gives tables, pictures and pages."""
