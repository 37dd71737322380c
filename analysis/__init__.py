"""Turns Timelines into numbers, tables, pictures and reports."""
