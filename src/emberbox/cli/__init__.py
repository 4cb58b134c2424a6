"""The command line: `emberbox run | exec | history | image | setup | doctor`. Every command is a thin
shell around the engine."""
