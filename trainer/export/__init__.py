"""`python -m trainer export`: the trained function as files other programs load, each read back first."""
