"""Plans: what to change, as frozen data that can be saved, compared and replayed. Nothing here changes a network."""
