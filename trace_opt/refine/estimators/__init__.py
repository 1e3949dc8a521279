"""Policy gradients: what a batch of sampled trajectories says about how a policy should change."""
