"""What a sandbox of the SDK is made of: a contract, and its two forms, in this process and on a server."""
