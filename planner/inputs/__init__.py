"""What a user gives: the job file, its texts and their tokens, read into Jobs."""
