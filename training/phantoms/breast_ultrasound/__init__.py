"""Breast ultrasound phantoms: layers of a breast with cysts and masses."""
