"""Weighted sets of named terms; each says which features of teacher and student it needs."""
