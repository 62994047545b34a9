"""The choice and the removal of channels: trace, score, budget, plan, surgery, compensation."""
