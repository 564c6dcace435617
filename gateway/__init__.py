"""The gateway: sells a model's answers over HTTP, in OpenAI's format, for payments that go straight to its router."""
