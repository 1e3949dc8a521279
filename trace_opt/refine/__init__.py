"""Who learns in hindsight: policies, policy gradients, reflections over several attempts."""
