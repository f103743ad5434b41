"""What is installed, built and working here, and what to do about what is not."""
