"""What is measured on held-out data: preference accuracy, and one policy against another."""
