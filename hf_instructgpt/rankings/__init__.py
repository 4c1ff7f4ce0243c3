"""Rankings and votes: their files, what is ranked next, how far annotators agree, judges in the place of people."""
