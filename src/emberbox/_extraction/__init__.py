"""Parts of the code extractor: finding blocks, telling what they are, scoring them. Private; see `code_extractor`."""
