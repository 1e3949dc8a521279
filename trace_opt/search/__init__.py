"""Who decides: budgets, evaluation, the search itself."""
