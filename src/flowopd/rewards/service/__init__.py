"""Scorers on the other side of a socket: the server, and the scorer that asks such servers."""
