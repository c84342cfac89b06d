"""Python source to packed rows of tokens: sources -> dedup -> filters -> tokens -> rows."""
