"""The minimum of the linear softmax layer's cost, for every λ at once, each with a certificate."""
