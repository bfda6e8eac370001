"""ImageReward: BLIP's reading of a picture and its prompt, rated by how people ranked such."""
