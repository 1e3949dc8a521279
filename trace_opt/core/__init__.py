"""What a workflow did: recording, the graph, feedback and its way back to the parameters. Never imports a model."""
