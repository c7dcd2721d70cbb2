"""What drain, ports and waits cost."""
