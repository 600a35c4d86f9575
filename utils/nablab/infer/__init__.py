"""Statistical inference whose every number has a gradient: likelihoods, fits, tests."""
