"""The warm pool: machines made before they are asked for."""
