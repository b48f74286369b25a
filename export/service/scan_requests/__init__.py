"""Takes the upload of a scan and returns the response: receive, admit, check, prepare, restore and write the scan."""
