"""The service: the engine over HTTP and WebSocket. It has no rule of its own about executions."""
