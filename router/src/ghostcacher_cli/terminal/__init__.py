"""What people see in a terminal: tables and bars as plain lines, a region that is overwritten, a full screen."""
