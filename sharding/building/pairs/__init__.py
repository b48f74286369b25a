"""Take a subject with the headers of its files, and make its low-field and high-field volumes, in pairs."""
