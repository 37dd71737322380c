"""What was measured or will be replayed: costs, timelines, token lengths. Imports no other room."""
