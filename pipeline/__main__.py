"""`python -m hoarfrost` is `hoarfrost`."""

from hoarfrost.cli import main

main(prog_name="hoarfrost")
