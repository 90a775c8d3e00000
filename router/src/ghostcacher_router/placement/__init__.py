"""Which worker a request goes to: forecasts, what was sent where, and ghost locks."""
