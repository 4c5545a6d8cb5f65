"""Other ways to drive a chain than the loop of `tilting.sample`: budgets that roll over, and optimised starting noise."""
