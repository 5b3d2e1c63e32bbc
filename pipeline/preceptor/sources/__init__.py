"""Real data brought to the contracts: job matching, headline tests, and a user's own pairs."""
