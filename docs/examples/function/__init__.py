"""A function as AWS Lambda calls it: by a connection (`connected`), over TCP or a WebSocket, or by `single_requests`."""
