"""One result model; terminal, Markdown, JSON and HTML are made from it."""
