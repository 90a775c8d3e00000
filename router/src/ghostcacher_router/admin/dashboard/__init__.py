"""What the dashboard shows beside what the admin API answers anyway: gathered beside requests, bounded, for people."""
