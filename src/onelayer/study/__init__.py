"""Studies of networks: check gradients, search λ, solve, plot, report."""
