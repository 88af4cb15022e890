"""A local page to play with: it moves pruning and machine, prices each state, and saves what was found."""
