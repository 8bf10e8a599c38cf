"""Networks as other libraries use them."""
