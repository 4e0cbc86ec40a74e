"""`transport="websocket"`: a process of its own carries each connection from a Unix socket to the server's WebSocket."""
