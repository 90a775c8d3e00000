"""Chooses the worker of a request (`picker`), and tracks the request until its end (`in_flight`)."""
