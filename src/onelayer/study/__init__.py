"""What people do with networks: check gradients, search λ, plot, report."""
