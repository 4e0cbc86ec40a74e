"""What both integrations share."""
