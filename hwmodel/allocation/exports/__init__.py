"""What other tools read of our costs."""
