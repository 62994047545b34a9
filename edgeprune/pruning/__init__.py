"""Which channels go, and how: trace, score, budget, plan, surgery, compensation."""
