"""Which folders are which packages; everything else about the project stands in setup.cfg.

`pipeline/` is the package `hoarfrost`, and `features/` is `hoarfrost.features`: so a `features.py` or a `pipeline/` of a
user's own, in the folder that Python was started in, is never taken for a part of this project.
"""

from setuptools import find_packages, setup

FOLDERS = {"hoarfrost": "pipeline", "hoarfrost.features": "features"}

setup(
    packages=[
        *FOLDERS,
        *(f"{package}.{room}" for package, folder in FOLDERS.items() for room in find_packages(folder)),
    ],
    package_dir=FOLDERS,
)
