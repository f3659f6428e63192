"""Head CT phantoms: an axial section with bleedings."""
