"""The router: one OpenAI- and Anthropic-compatible front for a fleet of engines. See app.py for how the parts meet."""
