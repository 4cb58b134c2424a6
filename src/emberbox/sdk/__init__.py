"""The SDK: `Sandbox` and `AsyncSandbox`, whose machines run in this process or on a server."""
