"""Who answers: one protocol for every language model, and the stack of layers that `connect` puts around one."""
