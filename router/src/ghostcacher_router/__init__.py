"""The router: one OpenAI- and Anthropic-compatible endpoint for a fleet of engines. See app.py for how it is made."""
