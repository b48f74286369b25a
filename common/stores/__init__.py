"""Remote stores: lists, reads and writes objects at an address, and translates the clients' errors into messages."""
