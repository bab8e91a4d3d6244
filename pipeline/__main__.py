"""`python -m pipeline` is `hoarfrost`."""

from pipeline.cli import main

main(prog_name="hoarfrost")
