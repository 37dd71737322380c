"""Emitters of Programs: each schedule is one pure function from a Plan to the actions of every stage."""
