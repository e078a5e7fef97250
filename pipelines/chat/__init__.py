"""Talking with a model: in a terminal, in a browser, through an endpoint."""
