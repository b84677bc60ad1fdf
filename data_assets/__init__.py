"""data_assets: event files in, trusted days out (a Dagster project).

Nothing lives here: ``definitions.py`` is what Dagster loads, ``cli.py`` is the command line, and every other module's
docstring says what is in it.
"""
