"""One evaluator and one clock for models in any form."""
