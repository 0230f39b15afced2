"""What a transform author imports.

A transform that plans name by a word is a marked factory of a pure function::

    @transform("upper")
    def upper(fields: list[str]) -> Transform:
        \"\"\"Write the text of these fields in capitals.\"\"\"
        def apply(record: Record) -> Record | None:
            ...
        return apply

A transform that one plan names by file (``python: transforms/clean.py:strip_html``)
is the pure function itself.
"""
