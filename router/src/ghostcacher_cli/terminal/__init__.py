"""What people see in a terminal: plain tables and bars, a region that is overwritten, a full screen, refusals."""
