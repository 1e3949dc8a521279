"""Who proposes new values for parameters: language models, samplers, demonstrations."""
